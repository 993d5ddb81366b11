#!/usr/bin/env python
"""Detect objects in a video and draw them.

    tools/demo.py --config-file C --input clip.mp4 --output drawn.mp4 --opts MODEL.WEIGHTS W
    tools/demo.py --config-file C --input frames/ --output drawn/ --json detections.json
    tools/demo.py --config-file C --input 0 --output camera.mp4       (Ctrl-C ends and keeps it)

--input is a video file, a folder of frames, a picture, or a camera (its number or /dev/video0);
--output is an .mp4, or a folder for JPEGs. A camera, and --online, use past frames only.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from clab_d2.engine.launch import EXIT_USER_ERROR, USER_ERRORS, load_config, one_line
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError, DataError
from clab_d2.video import (
    DetectionWriter,
    FrameWriter,
    VideoDetector,
    VideoSource,
    class_names,
    open_video,
    open_writer,
)
from clab_d2.visualization import draw_detections, readable_scale


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C", help="the model's config")
    parser.add_argument("--input", required=True, metavar="VIDEO", help="see above")
    parser.add_argument("--output", required=True, metavar="VIDEO", help="see above")
    parser.add_argument("--online", action="store_true", help="use past frames only")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help="draw detections of at least this score (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write all detections to this file")
    parser.add_argument(
        "--scale",
        type=float,
        metavar="F",
        help="enlarge what is drawn by this (default: small videos, until labels are readable)",
    )
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames")
    add_import_option(parser)
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys to change, such as MODEL.WEIGHTS; must come last",
    )
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    if not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold is {args.score_threshold}; it must be from 0 to 1")
    if args.scale is not None and not 0 < args.scale <= 16:
        raise ConfigError(f"--scale is {args.scale}; it must be above 0 and at most 16")
    if args.max_frames is not None and args.max_frames < 1:
        raise ConfigError(f"--max-frames is {args.max_frames}; it must be at least 1")
    if Path(args.input).resolve() == Path(args.output).resolve():
        raise ConfigError(f"--output {args.output} is the input; name another")


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    import_plugins(args.imports)
    cfg = load_config(args.config_file, args.opts)
    with open_video(args.input) as source:
        # Before the model is built: a wrong path shows at once.
        with open_writer(args.output, source.fps) as writer, ExitStack() as stack:
            names = class_names(cfg)
            detections = None
            if args.json:
                detections = stack.enter_context(DetectionWriter(args.json, source, names))
            complete, unreadable = detect(args, cfg, source, writer, detections, names)
            if not writer.num_frames:
                raise DataError(f"{args.input}: gave no frame")
        print(f"{writer.num_frames} frames written to {args.output}")
        if unreadable:
            print(f"{unreadable} damaged frames are shown as the frame before, without detections")
        if args.json:
            print(f"detections written to {args.json}")
        # A camera has no other end than Ctrl-C.
        return 0 if complete or source.num_frames is None else 130


def detect(
    args: argparse.Namespace,
    cfg: CfgNode,
    source: VideoSource,
    writer: FrameWriter,
    detections: DetectionWriter | None,
    names: Sequence[str],
) -> tuple[bool, int]:
    """Detect and draw; returns whether it came to its end, and the number of damaged frames."""
    detector = VideoDetector(cfg)
    total = source.num_frames
    if args.max_frames is not None:
        total = min(args.max_frames, total or args.max_frames)
    progress = tqdm(total=total, unit="frame", desc=Path(args.input).name or args.input)
    results = detector.detect(source, online=args.online)
    try:
        with progress, logging_redirect_tqdm([logging.getLogger("clab_d2")]):
            for frame, instances in results:
                scale = args.scale or readable_scale(*frame.shape[:2])
                writer.write(draw_detections(frame, instances, names, args.score_threshold, scale))
                if detections is not None:
                    detections.write(instances)
                progress.update()
                if progress.n == args.max_frames:
                    break
    except KeyboardInterrupt:
        print("\nstopped; what was detected so far is kept", file=sys.stderr)
        return False, len(detector.unreadable_frames)
    finally:
        results.close()
    return True, len(detector.unreadable_frames)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        return run(args)
    except USER_ERRORS as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    setup_logger(name="clab_d2")
    # What Detectron2 calls by an old name works all the same; nobody can act on it here.
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    sys.exit(main())
