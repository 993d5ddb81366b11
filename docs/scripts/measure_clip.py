#!/usr/bin/env python
"""Frames a second of a trained detector on a video, read, detected and drawn, and of its own single
frame, in turns.

    docs/scripts/measure_clip.py --weights model_final.pth --input clip.mp4 --size 320 512
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clab_d2 import VideoDetector
from clab_d2.engine.launch import add_key_value_option, exit_status
from clab_d2.errors import DataError

# What makes a detector temporal
AGGREGATION = ("MAPS", "ROI_FEATURES", "BOX_FEATURES", "PREDICTIONS")
WARM_UP = 5


def frames_per_second(detector: VideoDetector, clip: Path, num_frames: int) -> float:
    """Of one pass over the first frames of a clip, after some that warm up.

    Raises:
        DataError: the clip has fewer.
    """
    start, drawn = 0.0, 0
    for result in detector.detect(clip):
        result.draw()
        drawn += 1
        if drawn == WARM_UP:
            start = time.perf_counter()
        elif drawn == WARM_UP + num_frames:
            return num_frames / (time.perf_counter() - start)
    raise DataError(f"{clip}: has {drawn} frames; give --frames of {drawn - WARM_UP} at most")


def measure(args: argparse.Namespace) -> None:
    short, long = args.size
    options = ["INPUT.MIN_SIZE_TEST", str(short), "INPUT.MAX_SIZE_TEST", str(long), *args.opts]
    alone = [word for place in AGGREGATION for word in (f"MODEL.AGGREGATION.{place}", "")]
    detectors = {
        "single frame": VideoDetector.from_file(args.weights, options=[*options, *alone]),
        "temporal": VideoDetector.from_file(args.weights, options=options),
    }
    passes: dict[str, list[float]] = {name: [] for name in detectors}
    for _ in range(args.passes):
        for name, detector in detectors.items():
            passes[name].append(frames_per_second(detector, args.input, args.frames))
    for name, found in passes.items():
        spread = f"{min(found):.1f} to {max(found):.1f}"
        print(f"{name}: {statistics.median(found):.1f} frames a second ({spread})")
    ratios = [one / other for one, other in zip(*passes.values(), strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"a frame takes {statistics.median(ratios):.2f} times its single frame's time ({spread})")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="a trained detector's file")
    parser.add_argument("--input", type=Path, required=True, help="a video")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(320, 512), metavar=("SHORT", "LONG"),
        help="least of the short side and most of the long one (default: 320 512)",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, default=200, help="of a pass (default: 200)")
    parser.add_argument("--passes", type=int, default=5, help="of each (default: 5)")
    add_key_value_option(parser)
    return exit_status(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
