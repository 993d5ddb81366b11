#!/usr/bin/env python
"""Convert MOTChallenge sequences (gt/gt.txt), or CVAT's "MOT 1.1", to one CocoVID JSON.

    datasets/convert_mot.py --input MOT17/train --output mot17.json --classes pedestrian
    datasets/convert_mot.py --input clip1.txt clip2.txt --output mine.json --class-names car,bus \\
        --clips --image-root clips/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from clab_d2.converters.coco_vid_builder import ConversionOptions, Counts, Json
from clab_d2.converters.command_line import class_names, converter_parser, run_converter
from clab_d2.converters.mot import IGNORED, MotOptions, convert_mot


def make_parser() -> argparse.ArgumentParser:
    parser = converter_parser(
        __doc__,
        "sequence folders, folders of sequences, zip files of one sequence, or text files",
        clips="{video}.mp4",
    )
    parser.add_argument(
        "--class-names", metavar="NAMES", type=class_names,
        help="names of the classes 1, 2, ..., joined by commas (those of gt/labels.txt, else the "
        "MOTChallenge's)",
    )
    parser.add_argument(
        "--ignored", choices=IGNORED, default="crowd",
        help="what becomes of objects with flag 0: neither object nor background, left out, or "
        "objects as any other (crowd)",
    )
    parser.add_argument(
        "--first-frame", type=int, choices=(0, 1), default=1, help="number of the first frame (1)"
    )
    parser.add_argument(
        "--pixel-origin", type=int, choices=(0, 1),
        help="where the picture's left and top border is (0 with a labels.txt, else 1)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""

    def convert(args: argparse.Namespace, options: ConversionOptions) -> tuple[Json, Counts]:
        mot = MotOptions(args.class_names, args.ignored, args.first_frame, args.pixel_origin)
        return convert_mot(args.input, options, mot)

    return run_converter(make_parser(), argv, convert)


if __name__ == "__main__":
    sys.exit(main())
