"""What a method of post-processing takes and gives, and how a config names one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

from clab_d2.errors import ConfigError
from clab_d2.registry import Registry

POSTPROCESSING_REGISTRY = Registry("POSTPROCESSING", "TEST.POSTPROCESS.NAME")
POSTPROCESSING_REGISTRY.__doc__ = """
Methods of post-processing by their names in ``TEST.POSTPROCESS.NAME``. An entry is a
:class:`PostProcessing`, called as ``entry(cfg)``.
"""


@dataclass(frozen=True)
class VideoDetections:
    """All that was detected in one video, in any order.

    Attributes:
        frame: (N,) int64; the position of each one's frame among the frames that were looked at.
            Neighbouring frames differ by 1.
        box: (N, 4) float64, xyxy in pixels.
        score: (N,) float64, not negative.
        class_index: (N,) int64.

    Raises:
        ValueError: the arrays differ in length, or a value is not finite or a score negative.
    """

    frame: np.ndarray
    box: np.ndarray
    score: np.ndarray
    class_index: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in (("frame", np.int64), ("score", np.float64), ("class_index", np.int64)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind).reshape(-1))
        box = np.asarray(self.box, dtype=np.float64).reshape(-1, 4)
        object.__setattr__(self, "box", box)
        if len({len(self.frame), len(self.box), len(self.score), len(self.class_index)}) > 1:
            raise ValueError("frame, box, score and class_index differ in length")
        if not (np.isfinite(self.box).all() and np.isfinite(self.score).all()):
            raise ValueError("a box or score is not finite")
        if self.score.min(initial=0.0) < 0:
            raise ValueError("a score is negative")


@dataclass(frozen=True)
class Rescored:
    """What post-processing leaves of a video's detections.

    Attributes:
        rows: (K,) int64, which of them are kept, rising.
        score: (K,) float64, their new scores.
    """

    rows: np.ndarray
    score: np.ndarray


class PostProcessing(ABC):
    """A method that looks at all detections of a video and gives them new scores, or drops some."""

    @abstractmethod
    def __call__(self, detections: VideoDetections) -> Rescored:
        """Process the detections of one video."""


def build_postprocessing(cfg: CfgNode) -> PostProcessing | None:
    """Build what ``TEST.POSTPROCESS.NAME`` names; None where it is empty.

    Raises:
        ConfigError: the method is unknown, or its numbers make no sense.
    """
    name = cfg.TEST.POSTPROCESS.NAME
    return POSTPROCESSING_REGISTRY.build(name, PostProcessing, cfg) if name else None


def checked_iou(key: str, value: float) -> float:
    """A threshold of IoU.

    Raises:
        ConfigError: it is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"TEST.POSTPROCESS.{key} is {value}; it must be from 0 to 1")
    return float(value)
