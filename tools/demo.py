#!/usr/bin/env python
"""Detect objects in a video and draw them.

    tools/demo.py --weights model_final.pth --input clip.mp4 --output drawn.mp4
    tools/demo.py --weights W --input clip.mp4 --output drawn.mp4 --track --csv tracks.csv
    tools/demo.py --weights W --input frames/ --json found.json --cvat to_correct.xml
    tools/demo.py --weights W --input 0 --output camera.mp4       (Ctrl-C ends and keeps it)
    tools/demo.py --config-file COCO-Start/faster_rcnn_R_50_FPN.yaml ...       (COCO's 80 classes)

--weights is what a training wrote (.pth or .safetensors), which is enough, or the folder of an
exported model (docs/export.md); both may come from a stranger. Others need --config-file, too.
--input is a video file, a folder of frames, a picture, or a camera (its number or /dev/video0);
--output is an .mp4, or a folder for JPEGs. A camera, and --online, use past frames only.
All is written as it comes. What was broken off is under NAME.partial.SUFFIX (docs/detect.md).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from clab_d2.engine.command_line import add_key_value_option, exit_status
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError, DataError
from clab_d2.video import (
    FORMATS,
    DetectionWriter,
    FrameWriter,
    VideoDetector,
    VideoSource,
    open_detections,
    open_video,
    open_writer,
)
from clab_d2.video.command_line import (
    add_appearance,
    add_runtime_option,
    add_score_threshold,
    add_shots,
    build_detector,
    check_score_threshold,
    set_up,
)
from clab_d2.video.shown_count import ShownCount
from clab_d2.video.tracks import TRACKERS
from clab_d2.visualization import DetectionDrawer, DrawStyle, readable_scale

# "json" is what people look for.
OPTION_OF_FORMAT = {"coco": "json"}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--weights W] --input VIDEO [--output VIDEO] [OPTION ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", metavar="W", help="the trained model, see above")
    add_runtime_option(parser)
    parser.add_argument(
        "--config-file", metavar="C", help="the model's config (default: the one that W carries)"
    )
    parser.add_argument("--input", required=True, metavar="VIDEO", help="see above")
    parser.add_argument("--output", metavar="VIDEO", help="draw into this, see above")
    parser.add_argument("--online", action="store_true", help="use past frames only")
    add_shots(parser)
    parser.add_argument(
        "--track",
        nargs="?",
        const="bytetrack",
        choices=TRACKERS,
        metavar="NAME",
        help=f"give objects numbers that they keep: {', '.join(TRACKERS)} (default: %(const)s)",
    )
    add_appearance(parser)
    add_score_threshold(parser, "CVAT, LabelMe and YOLO")
    for name, kind in FORMATS.items():
        parser.add_argument(
            f"--{OPTION_OF_FORMAT.get(name, name)}",
            dest=f"format_{name}",
            metavar="FILE" if kind.suffix else "DIR",
            help=f"write detections as {kind.summary}",
        )
    parser.add_argument(
        "--scale",
        type=float,
        metavar="F",
        help="enlarge what is drawn (default: small videos, until labels are readable)",
    )
    parser.add_argument(
        "--colour-by",
        choices=("class", "track"),
        metavar="WHAT",
        help="colours stand for class or track (default: class; with --track, track)",
    )
    parser.add_argument(
        "--show",
        nargs="*",
        choices=("class", "track", "score"),
        default=("class", "track", "score"),
        metavar="WHAT",
        help="labels say class, track, score; nothing: no labels (default: all)",
    )
    parser.add_argument("--line-width", type=int, metavar="PX", help="of boxes (default: by size)")
    parser.add_argument(
        "--text-scale", type=float, metavar="F", help="of labels, 1 is 22 pixels (default: by size)"
    )
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames")
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    if not args.weights and not args.config_file:
        raise ConfigError(
            "no model given; add --weights, such as output/demo/model_final.pth, or for COCO's "
            "classes without any training --config-file COCO-Start/faster_rcnn_R_50_FPN.yaml"
        )
    check_score_threshold(args)
    if args.scale is not None and not 0 < args.scale <= 16:
        raise ConfigError(f"--scale is {args.scale}; it must be above 0 and at most 16")
    for name, value, most in (
        ("line-width", args.line_width, 64),
        ("text-scale", args.text_scale, 16),
    ):
        if value is not None and not 0 < value <= most:
            raise ConfigError(f"--{name} is {value}; it must be above 0 and at most {most}")
    if args.max_frames is not None and args.max_frames < 1:
        raise ConfigError(f"--max-frames is {args.max_frames}; it must be at least 1")
    outputs = [args.output, *chosen_formats(args).values()]
    if not any(outputs):
        raise ConfigError("nothing to write; add --output drawn.mp4, --json found.json or another")
    for output in filter(None, outputs):
        if Path(args.input).resolve() == Path(output).resolve():
            raise ConfigError(f"{output} is the input; name another output")


def chosen_formats(args: argparse.Namespace) -> dict[str, str]:
    """Where to write, by format."""
    paths = {name: getattr(args, f"format_{name}") for name in FORMATS}
    return {name: path for name, path in paths.items() if path}


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    import_plugins(args.imports)
    with open_video(args.input) as source:
        with ExitStack() as stack:
            drawing = None
            if args.output:
                # Before the model is built: a wrong path shows at once.
                DetectionDrawer()  # needs a package of an extra
                drawing = stack.enter_context(open_writer(args.output, source.fps))
            detector = build_detector(args)
            writers = [
                stack.enter_context(
                    open_detections(
                        path, name, source.name, detector.class_names, args.score_threshold
                    )
                )
                for name, path in chosen_formats(args).items()
            ]
            count = ShownCount(args.score_threshold)
            num_frames, complete = detect(args, detector, source, drawing, writers, count)
            if not num_frames:
                raise DataError(f"{args.input}: gave no frame")
        for path in filter(None, [args.output, *chosen_formats(args).values()]):
            print(f"{num_frames} frames written to {path}")
        print(count.summary())
        if unreadable := len(detector.unreadable_frames):
            print(f"{unreadable} damaged frames are shown as the frame before, without detections")
        # A camera has no other end than Ctrl-C.
        return 0 if complete or source.num_frames is None else 130


def detect(
    args: argparse.Namespace,
    detector: VideoDetector,
    source: VideoSource,
    drawing: FrameWriter | None,
    writers: Sequence[DetectionWriter],
    count: ShownCount,
) -> tuple[int, bool]:
    """Detect, draw, write and count; returns the number of frames, and whether that was all."""
    total = source.num_frames
    if args.max_frames is not None:
        total = min(args.max_frames, total or args.max_frames)
    colour_by = args.colour_by or ("track" if args.track else "class")
    style = DrawStyle(colour_by, tuple(args.show), args.line_width, args.text_scale)
    mode = "online" if args.online else "offline"
    track = args.track or False
    results = detector.detect(
        source, mode, track=track, appearance=args.appearance, shots=args.shots or None
    )
    # Begun last: what can't be is told on a line of its own.
    progress = tqdm(total=total, unit="frame", desc=Path(args.input).name or args.input)
    try:
        with progress, logging_redirect_tqdm([logging.getLogger("clab_d2")]):
            for result in results:
                count.add(result)
                if drawing is not None:
                    scale = args.scale or readable_scale(*result.image.shape[:2])
                    drawing.write(result.draw(args.score_threshold, scale, style))
                for writer in writers:
                    writer.write(result)
                progress.update()
                if progress.n == args.max_frames:
                    break
    except KeyboardInterrupt:
        print("\nstopped; what was detected so far is kept", file=sys.stderr)
        return progress.n, False
    finally:
        results.close()
    return progress.n, True


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    set_up()
    sys.exit(main())
