"""What the command lines that make CocoVID JSON of other tools' annotations have in common."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from collections.abc import Callable, Sequence

from clab_d2.converters.coco_vid_builder import (
    DEFAULT_FRAMES,
    ConversionOptions,
    Counts,
    Json,
    split_videos,
)
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import write_json

Convert = Callable[[argparse.Namespace, ConversionOptions], tuple[Json, Counts]]


def converter_parser(description: str | None, inputs: str, clips: str) -> argparse.ArgumentParser:
    """Return a parser with the options that do not depend on where the annotations come from.

    Args:
        description: the script's docstring.
        inputs: help for ``--input``.
        clips: the pattern that ``--clips`` alone stands for.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help=inputs)
    parser.add_argument("--output", required=True, metavar="JSON", help="the file to write")
    frames = parser.add_argument_group(
        "where the frames are",
        "Patterns may have {video}, {source} (the video file's name),\n{frame} (number from 0), "
        "{number} (from 1) and {index} (position in the JSON, from 0).",
    )
    frames.add_argument(
        "--frames",
        metavar="PATTERN",
        type=str,
        help=f"pictures, relative to the image root ({DEFAULT_FRAMES.replace('%', '%%')} unless "
        "the annotations say otherwise); with a *, those that are there, in natural order",
    )
    frames.add_argument(
        "--clips",
        metavar="PATTERN",
        nargs="?",
        const=clips,
        help="video files, relative to the image root: frames that are not there as pictures are "
        f"read from them ({clips} if no pattern follows)",
    )
    frames.add_argument("--image-root", metavar="DIR", help="folder of the pictures or video files")
    frames.add_argument(
        "--size", metavar="WxH", type=_size, help="frames' size in pixels where nothing tells it"
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        type=class_names,
        help="the classes to keep, joined by commas, in this order (all)",
    )
    parser.add_argument(
        "--train-every",
        metavar="N",
        type=int,
        default=1,
        help="train on every Nth annotated frame of a video; all serve as references (1)",
    )
    split = parser.add_argument_group("a validation set, by video")
    split.add_argument(
        "--val-output", metavar="JSON", help="write some videos here instead of to --output"
    )
    split.add_argument("--val-videos", metavar="NAME", nargs="+", help="which videos")
    split.add_argument(
        "--val-fraction", metavar="F", type=float, help="or what share of them, spread evenly (0.2)"
    )
    return parser


def run_converter(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, convert: Convert
) -> int:
    """Parse the command line, convert, and write what comes out; return the exit status."""
    args = parser.parse_args(argv)
    if (args.val_videos or args.val_fraction is not None) and args.val_output is None:
        parser.error("--val-videos and --val-fraction need --val-output")
    if args.val_videos and args.val_fraction is not None:
        parser.error("give --val-videos or --val-fraction, not both")
    fraction = 0.2 if args.val_fraction is None else args.val_fraction
    if args.val_output is not None and args.val_output == args.output:
        parser.error("--val-output and --output are the same file")
    if not 0 < fraction < 1:
        parser.error(f"--val-fraction {fraction:g}: it must be between 0 and 1")

    def work() -> None:
        options = ConversionOptions(
            classes=args.classes,
            frames=args.frames,
            clips=args.clips,
            image_root=args.image_root,
            size=args.size,
            fill_gaps=getattr(args, "fill_gaps", False),
            key_frames_only=getattr(args, "key_frames_only", False),
            train_every=args.train_every,
        )
        data, counts = convert(args, options)
        parts = {args.output: data}
        if args.val_output is not None:
            parts[args.output], parts[args.val_output] = split_videos(
                data, args.val_videos, fraction
            )
        for path, part in parts.items():
            write_json(path, part)
        print(f"{args.output}: {counts}" if len(parts) == 1 else f"all: {counts}")
        if len(parts) > 1:
            for path, part in parts.items():
                names = ", ".join(video["name"] for video in part["videos"])
                print(
                    f"{path}: {len(part['videos'])} videos ({names}), "
                    f"{len(part['images'])} images, {len(part['annotations'])} objects"
                )

    return exit_status(work)


def exit_status(work: Callable[[], object]) -> int:
    """Do a converter's work; its mistakes become one line and the exit status to return."""
    # Ended from outside, tidy up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        work()
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no half-written file is left", file=sys.stderr)
        return 130
    return 0


def class_names(text: str) -> list[str]:
    """Split names joined by commas, for argparse."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 1280x720")
    return int(match[2]), int(match[1])
