#!/usr/bin/env python
"""Time a temporal detector against its single-frame half, side by side, on one made-up video.

    tools/benchmark.py                                          R-50 DC5, 600x1000, 14 references
    tools/benchmark.py --config-file C --size 128 192 --frames 5 --opts KEY VALUE ...

Random weights and frames: the cost does not depend on what is seen. The variants take turns at
every key frame, so that a machine that slows down slows them alike:

    single frame    the same detector without SELSA and Temporal RoI Align
    temporal        references computed once a video and kept
    no memory       references computed anew for every key frame (only with --no-memory: slow)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate

from clab_d2 import get_clab_cfg
from clab_d2.data.frame_sampling import adaptive_references
from clab_d2.engine.launch import EXIT_USER_ERROR, USER_ERRORS, one_line
from clab_d2.errors import ConfigError
from clab_d2.io import write_json
from clab_d2.modeling import TemporalRCNN

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = ROOT / "configs/ImageNetVID/temporal_roi_align_R_50_DC5.yaml"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(DEFAULT_CONFIG), metavar="C")
    parser.add_argument("--size", type=int, nargs=2, default=(600, 1000), metavar=("H", "W"))
    parser.add_argument("--frames", type=int, default=3, help="key frames timed")
    parser.add_argument("--no-memory", action="store_true", help="also time the third variant")
    parser.add_argument("--output", metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE")
    return parser.parse_args()


def build(config_file: str, options: list[str]) -> tuple[CfgNode, TemporalRCNN]:
    cfg = get_clab_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(options)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    return cfg, build_model(cfg).eval()


def seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each key frame, by variant."""
    cfg, temporal = build(args.config_file, args.opts)
    if not temporal.aggregates:
        raise ConfigError(f"{args.config_file}: a single-frame detector has nothing to compare")
    off = ["MODEL.SELSA.ENABLED", "False", "MODEL.TEMPORAL_ROI_ALIGN.ENABLED", "False"]
    _, single = build(args.config_file, [*args.opts, *off])
    height, width = args.size
    # Frame 0 fills the memory and warms up; then key frames are timed that are no references, so
    # that nothing of theirs is in memory already.
    length = 4 * cfg.TEST.REFERENCES.NUM + args.frames
    frames = torch.randint(0, 256, (length, 3, height, width), dtype=torch.uint8)
    references = adaptive_references(length, cfg.TEST.REFERENCES.NUM)
    keys = [frame for frame in range(length) if frame not in references][: args.frames]

    def clip(frame: int, everything: bool) -> dict:
        wanted = set(references) - {frame} if everything or frame == 0 else set()
        return {
            "image": frames[frame],
            "height": height,
            "width": width,
            "video_id": 1,
            "frame_id": frame,
            "reference_frame_ids": [*references, frame],
            "reference_images": {index: frames[index] for index in wanted},
        }

    def without_memory(frame: int) -> None:
        temporal.memory.clear()
        temporal([clip(frame, True)])

    times: dict[str, list[float]] = {"single frame": [], "temporal": []}
    for frame in [0, *keys]:
        rows = {
            "single frame": seconds(
                lambda f=frame: single(
                    [{**clip(f, False), "reference_frame_ids": [], "reference_images": {}}]
                )
            ),
            "temporal": seconds(lambda f=frame: temporal([clip(f, False)])),
        }
        if frame > 0:
            for name, value in rows.items():
                times[name].append(value)
    if args.no_memory:
        times["no memory"] = [seconds(lambda f=frame: without_memory(f)) for frame in keys]
    return times


def main() -> int:
    args = parse_arguments()
    try:
        times = measure(args)
    except USER_ERRORS as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    base = times["single frame"]
    rows = []
    for name, values in times.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        median = statistics.median(values)
        rows.append(
            {
                "variant": name,
                "s a frame": median,
                "frames/s": 1 / median,
                "x single": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        )
    print(f"{args.size[0]}x{args.size[1]}, {torch.get_num_threads()} threads, medians")
    print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".3g"))
    if args.output:
        write_json(args.output, {"times": times, "arguments": vars(args)}, indent=1)
        print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
