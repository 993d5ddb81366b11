#!/usr/bin/env python
"""Write a trained detector for other runtimes.

    tools/export_model.py --weights model_final.pth --output exported/
    tools/export_model.py --weights W --output exported/ --size 320 512
    tools/export_model.py --weights W --output exported/ --int8 clip.mp4

The folder is what tools/demo.py --weights exported/ and VideoDetector.from_file take: two ONNX
graphs for onnxruntime or OpenVINO, the class names and what is done to frames (docs/export.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from clab_d2.engine.launch import add_key_value_option, exit_status, load_config
from clab_d2.engine.model_loading import load_model, read_detector
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError, DataError
from clab_d2.export.onnx_folder import export_onnx
from clab_d2.export.quantize import MAX_FRAMES, quantize_backbone
from clab_d2.video import Source, each_video, open_video
from clab_d2.video.command_line import set_up
from clab_d2.video.pytorch_model import class_names_by_datasets


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="W", help="the trained model")
    parser.add_argument(
        "--config-file", metavar="C", help="the model's config (default: the one that W carries)"
    )
    parser.add_argument("--format", choices=("onnx",), default="onnx", help="(default: onnx)")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size of the resized and padded frames, the only one taken; OpenVINO and onnxruntime "
        "may be faster with it (default: any)",
    )
    parser.add_argument(
        "--int8",
        metavar="VIDEO",
        help="the backbone's convolutions in 8-bit integers, calibrated on this video, or on a "
        "folder of videos",
    )
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    # What other runtimes have is single precision on a CPU.
    options = [*args.opts, "MODEL.DEVICE", "cpu", "TEST.PRECISION", "fp32", "TEST.COMPILE", "False"]
    content = None
    if args.config_file:
        cfg = load_config(args.config_file, [*options, "MODEL.WEIGHTS", args.weights],
                          needs_datasets=False)  # fmt: skip
        names = None
    else:
        cfg, content, card = read_detector(args.weights, device="cpu", options=options)
        names = card.class_names
    if cfg.TEST.AUG.ENABLED:
        raise ConfigError("TEST.AUG.ENABLED can't be exported; add --opts TEST.AUG.ENABLED False")
    model, names_in_file = load_model(cfg, content)
    names = names or names_in_file or class_names_by_datasets(cfg)
    size = tuple(args.size) if args.size else None
    # Before minutes of tracing: a wrong path shows at once.
    videos = calibration_videos(args.int8) if args.int8 else []
    description = export_onnx(model, cfg, names, args.output, size)
    if videos:
        quantize_backbone(args.output, description, spread_frames(videos))
    for path in sorted(Path(args.output).iterdir()):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def calibration_videos(path: str) -> list[Source]:
    """Videos to calibrate with: the one at ``path``, or of a folder of videos some spread over it.

    Raises:
        ConfigError: one of them is a stream.
        DataError: one of them can't be read.
    """
    videos = list(each_video(path))
    videos = [videos[row] for row in spread(len(videos), MAX_FRAMES)]
    for video in videos:
        with open_video(video) as source:
            if source.num_frames is None:
                raise ConfigError(
                    f"--int8 {source.name}: a stream can't calibrate; name a file or folder"
                )
    return videos


def spread_frames(videos: Sequence[Source]) -> Iterator[np.ndarray]:
    """As many frames of each video, spread over it; damaged ones are left out."""
    for number, video in enumerate(videos):
        share = (number + 1) * MAX_FRAMES // len(videos) - number * MAX_FRAMES // len(videos)
        with open_video(video) as source:
            assert source.num_frames is not None
            for frame in spread(source.num_frames, share):
                with suppress(DataError):
                    yield source.read(frame)


def spread(total: int, most: int) -> list[int]:
    """Numbers below ``total``, as far apart as can be: all of them where there are no more than
    ``most``."""
    step = max(total / most, 1)
    return [int((number + 0.5) * step) for number in range(min(total, most))]


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    set_up()
    sys.exit(main())
