"""Seconds a key frame by PyTorch and by the runtimes of exported models, side by side."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from clab_d2.benchmark import OURS, Setting, build, seconds
from clab_d2.errors import ConfigError
from clab_d2.export.onnx_folder import export_onnx
from clab_d2.modeling import TemporalDetector
from clab_d2.runtime.model import ExportedModel
from clab_d2.runtime.sessions import RUNTIMES

logger = logging.getLogger(__name__)

PYTORCH = "PyTorch"

# An exported key frame finds most similar positions by whole matrix products, and filling each
# runtime's memory takes all references: at the paper's size this did not end in 380 s.
_MAX_PIXELS, _MAX_REFERENCES, _MAX_KEYS = 300 * 500, 4, 2


@dataclass(frozen=True)
class RuntimeComparison:
    """PyTorch and the runtimes side by side.

    Attributes:
        size: (height, width) of the frames.
        references: of a key frame, itself not counted.
        seconds: of each key frame, by runtime.
    """

    size: tuple[int, int]
    references: int
    seconds: dict[str, list[float]]

    def title(self) -> str:
        """What was measured, for people."""
        height, width = self.size
        return (
            "The temporal detector in single precision, by PyTorch and exported, with frames of "
            f"{height}x{width} and {self.references} references:"
        )

    def rows(self) -> list[dict[str, str]]:
        """Rows of a table: medians, and their ratios to PyTorch's at the same key frame with their
        spread."""
        table = []
        for name, times in self.seconds.items():
            ratios = [base / one for base, one in zip(self.seconds[PYTORCH], times, strict=True)]
            median = statistics.median(times)
            table.append(
                {
                    "runtime": name,
                    "s a frame": f"{median:.3g}",
                    "frames/s": f"{1 / median:.3g}",
                    "x PyTorch (least to most)": f"{statistics.median(ratios):.2f} "
                    f"({min(ratios):.2f} to {max(ratios):.2f})",
                }
            )
        return table


def shorter(setting: Setting) -> Setting:
    """The same with smaller frames and fewer references, where it has more than fit into a run."""
    height, width = setting.size
    scale = min(1.0, math.sqrt(_MAX_PIXELS / (height * width)))
    return dataclasses.replace(
        setting,
        size=(round(height * scale), round(width * scale)),
        num_references=min(setting.num_references, _MAX_REFERENCES),
    )


def compare_runtimes(setting: Setting, num_keys: int) -> RuntimeComparison | None:
    """Time a temporal detector in single precision on a CPU, the runtimes in turns.

    Args:
        setting: what to measure.
        num_keys: key frames timed, after one that warms up; at most two.

    Returns:
        Of the runtimes that are installed. None where the detector can't be exported, or the
        packages that export are missing.
    """
    num_keys = min(num_keys, _MAX_KEYS)
    cfg = setting.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.TEST.PRECISION, cfg.TEST.COMPILE = "cpu", "fp32", False
    setting = dataclasses.replace(setting, cfg=cfg)
    model = build(setting, OURS)
    names = [str(number) for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    installed = [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_onnx(model, cfg, names, folder, _padded_size(model, setting.size))
        except ConfigError as error:
            logger.warning("runtimes are not compared: %s", error)
            return None
        threads = torch.get_num_threads()
        runs: dict[str, Callable[[Any], Any]] = {PYTORCH: lambda clip: model([clip])}
        for name in installed:
            exported = ExportedModel.load(folder, name, threads)
            runs[name] = lambda clip, run=exported: run([_as_arrays(clip)])
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(setting.key_clip(0, OURS))
    for number, key in enumerate(setting.key_frames(num_keys + 1)):
        for name, run in runs.items():
            clip = setting.key_clip(key, OURS)
            one = seconds(lambda r=run, c=clip: r(c))
            if number > 0:
                taken[name].append(one)
    return RuntimeComparison(setting.size, setting.num_references, taken)


def _padded_size(model: TemporalDetector, size: tuple[int, int]) -> tuple[int, int]:
    step = max(model.backbone.size_divisibility, 1)
    height, width = (-(-side // step) * step for side in size)
    return height, width


def _as_arrays(clip: dict[str, Any]) -> dict[str, Any]:
    """A clip as an exported model takes it."""
    images = {number: image.numpy().transpose(1, 2, 0) for number, image in clip["images"].items()}
    return {**clip, "images": images}
