"""A page of what detectors cost on a GPU, by ways of running them: ``benchmark.py --gpu-report``.

Each measurement stands for itself: one that fails leaves its reason in its row, and the page is
written all the same.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor

from clab_d2 import benchmark
from clab_d2.benchmark import OURS, SINGLE, Setting
from clab_d2.errors import DataError
from clab_d2.layers.most_similar import triton
from clab_d2.layers.roi_pooling import bin_interpolation

logger = logging.getLogger(__name__)

Row = dict[str, Any]

# Ways of running a detector: name -> options
WAYS: dict[str, tuple[Any, ...]] = {
    "fp32": (),
    "fp16": ("TEST.PRECISION", "fp16"),
    "bf16": ("TEST.PRECISION", "bf16"),
    "bf16, norms not folded, not channels-last": (
        "TEST.PRECISION", "bf16", "TEST.OPTIMIZE", False,
    ),
    "bf16, compiled backbone": ("TEST.PRECISION", "bf16", "TEST.COMPILE", True),
}  # fmt: skip


def require_gpu() -> None:
    """
    Raises:
        DataError: there is none.
    """
    if not torch.cuda.is_available():
        raise DataError(
            "--gpu-report measures a GPU, and PyTorch sees none; run it on a machine with CUDA "
            "(tools/benchmark.py without it measures this CPU)"
        )


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """A row with what was measured, or with the reason why it could not be."""
    try:
        return row | measure()
    except Exception as error:  # whatever a driver or a compiler raises
        logger.warning("%s: %s", row, error)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return row | {"failed": f"{type(error).__name__}: {reason[0]}"}


def measure_ways(
    detectors: dict[str, Setting], num_keys: int, ways: dict[str, tuple[Any, ...]] = WAYS
) -> list[Row]:
    """Frames a second of detectors and of their single-frame halves, for each way of running them.

    Args:
        detectors: by name.
        num_keys: key frames timed of each, after one that warms up.
        ways: options of each.
    """
    rows = []
    for name, setting in detectors.items():
        for way, options in ways.items():
            changed = dataclasses.replace(setting, cfg=_with_options(setting.cfg, options))
            row = {"detector": name, "way": way}
            rows.append(attempt(row, lambda s=changed: _compared(s, num_keys)))
    return rows


def _with_options(cfg: CfgNode, options: Sequence[Any]) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(options))
    return cfg


def _compared(setting: Setting, num_keys: int) -> Row:
    comparison = benchmark.compare(setting, num_keys, 0)
    single, ours = (statistics.median(comparison.seconds[v]) for v in (SINGLE, OURS))
    ratio = statistics.median(comparison.ratios(OURS, SINGLE))
    return {
        "single frame, frames/s": 1 / single,
        "temporal, frames/s": 1 / ours,
        "x single": ratio,
    }


def measure_blocks(
    device: torch.device, size: tuple[int, int], channels: int, num_references: int, tries: int
) -> list[Row]:
    """Milliseconds of the search by Triton, for each way of cutting its work.

    Args:
        device: a GPU.
        size: (height, width) of the feature maps.
        channels: of the maps.
        num_references: maps that are searched.
        tries: of which the least time counts.
    """
    rows = []
    choices: tuple[tuple[torch.dtype, triton.Route, Iterable[triton.Blocks]], ...] = (
        (torch.bfloat16, "direct", triton.DIRECT_HALF),
        (torch.float16, "direct", triton.DIRECT_HALF),
        (torch.float32, "direct", triton.DIRECT_SINGLE),
        (torch.float32, "interpolated", triton.INTERPOLATED),
        (torch.bfloat16, "interpolated", triton.INTERPOLATED),
    )
    for dtype, route, candidates in choices:
        for blocks in candidates:
            row = {"type": str(dtype).removeprefix("torch."), "route": route, **blocks._asdict()}

            def measure(
                dtype: torch.dtype = dtype,
                route: triton.Route = route,
                blocks: triton.Blocks = blocks,
            ) -> Row:
                given = _search_input(device, size, channels, num_references, dtype)

                def search() -> object:
                    return triton.search_padded(*given, 2, route=route, blocks=blocks)

                search()  # compiles
                return {"ms": 1000 * min(benchmark.seconds(search) for _ in range(tries))}

            rows.append(attempt(row, measure))
    return rows


def _search_input(
    device: torch.device, size: tuple[int, int], channels: int, num_maps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Any, list[Tensor]]:
    """Bins of 300 RoIs, the map that they are made of, how, and reference maps; random."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1 + num_maps, height * width, channels, generator=generator)
    corners = torch.rand(300, 2, 2, generator=generator)
    extent = torch.tensor([width, height], dtype=torch.float32)
    boxes = torch.cat([corners.amin(1) * extent, corners.amax(1) * extent], dim=1)
    interpolation = bin_interpolation(boxes.to(device), 7, 1.0, 2, height, width)
    key, *references = maps.to(device, dtype)
    return interpolation.of(key), key, interpolation, references


def measure_graph(setting: Setting, tries: int) -> list[Row]:
    """Milliseconds of the backbone on one frame: as it is, and replayed as a CUDA graph."""
    rows = []
    for way in ("as it is", "CUDA graph"):

        def measure(graphed: bool = way == "CUDA graph") -> Row:
            return {"ms": 1000 * _backbone_seconds(setting, graphed, tries)}

        rows.append(attempt({"backbone": way}, measure))
    return rows


@torch.no_grad()
def _backbone_seconds(setting: Setting, graphed: bool, tries: int) -> float:
    model = benchmark.build(setting, SINGLE)
    image = model.preprocess([setting.image(0)]).tensor
    run: Callable[[], object] = lambda: model.backbone(image)  # noqa: E731
    with torch.autocast(model.device.type, torch.bfloat16, cache_enabled=False):
        run()
        if graphed:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # as CUDA graphs want it: warmed up on another stream
                run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            run = graph.replay
        return min(benchmark.seconds(run) for _ in range(tries))


def page(machine: str, command: str, main: str, sections: dict[str, list[Row]]) -> str:
    """All of it as Markdown.

    Args:
        machine: in words.
        command: what made the page.
        main: the tables of the paper's detector, as ``tools/benchmark.py`` makes them.
        sections: more tables by title.
    """
    parts = ["# Speed and memory on a GPU", f"`{command}` on {machine}.", main.strip()]
    for title, rows in sections.items():
        parts += [f"## {title}", _table(rows)]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[Row]) -> str:
    """Rows may lack columns; numbers with three digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = [[_cell(row.get(name)) for name in columns] for row in rows]
    return tabulate(shown, headers=columns, tablefmt="pipe", disable_numparse=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")
