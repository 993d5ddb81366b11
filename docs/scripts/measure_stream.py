#!/usr/bin/env python
"""Show that a long video takes no more memory and no more time a frame than a short one.

    python docs/scripts/measure_stream.py [--frames 10000]

Detects in a made-up video with random weights, once for each way of choosing reference frames;
prints a Markdown table of resident memory and of frames per second over the stretch before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from tabulate import tabulate

from clab_d2.benchmark import resident_bytes
from clab_d2.engine import load_config
from clab_d2.video import VideoDetector, VideoSource

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/quick_schedules/clab_quick.yaml"
MARKS = 10


class MadeUpVideo(VideoSource):
    """Any frame by its number, made when it is asked for."""

    def __init__(self, num_frames: int, size: tuple[int, int]) -> None:
        self.name = "made-up video"
        self.num_frames = num_frames
        self.height, self.width = size

    def read(self, index: int) -> np.ndarray:
        if not 0 <= index < self.num_frames:
            raise IndexError(f"{self.name}: no frame {index}")
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)


def marks(detector: VideoDetector, source: object, every: int) -> Iterator[tuple[float, ...]]:
    start = time.perf_counter()
    for number, _ in enumerate(detector.detect(source), start=1):
        if number % every == 0:
            now = time.perf_counter()
            held = len(detector.model.memory)
            yield number, resident_bytes() / 2**20, every / (now - start), held
            start = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    args = parser.parse_args()
    rows = []
    for title, sampling in (("stream", "causal"), ("fixed stride", "fixed"),
                            ("adaptive stride", "adaptive")):  # fmt: skip
        cfg = load_config(str(CONFIG), ["MODEL.DEVICE", "cpu", "TEST.REFERENCES.SAMPLING", sampling,
                                        "TEST.REFERENCES.NUM", "14"])  # fmt: skip
        torch.manual_seed(0)
        video = MadeUpVideo(args.frames, (64, 96))
        frames = (video.read(i) for i in range(args.frames)) if sampling == "causal" else video
        detector = VideoDetector(cfg, build_model(cfg))
        for number, memory, speed, held in marks(detector, frames, args.frames // MARKS):
            rows.append((title, number, f"{memory:.0f}", f"{speed:.1f}", held))
            print(*rows[-1], flush=True)
    headers = ("references", "frame", "resident MiB", "frames/s", "frames in memory")
    print(tabulate(rows, headers=headers, tablefmt="pipe"))


if __name__ == "__main__":
    main()
