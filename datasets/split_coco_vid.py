#!/usr/bin/env python
"""Split a CocoVID file: for training and for validation.

    datasets/split_coco_vid.py all.json --train train.json --val val.json --by video
    datasets/split_coco_vid.py all.json --train train.json --val val.json --by time --val-share 0.3

By video, whole videos are held back: what is measured then is how well a detector does on videos it
has never seen. By time, the last annotated frames of every video are held back; both files list all
frames, those of the other side as references only ("annotated": false).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from clab_d2.converters.coco_vid_parts import read_coco_vid, summary_of
from clab_d2.converters.command_line import exit_status
from clab_d2.converters.split_coco_vid import split_by_time, split_by_video
from clab_d2.errors import DataError
from clab_d2.io import write_json


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN.json", help="the annotations, CocoVID or COCO")
    parser.add_argument("--train", required=True, metavar="T.json", help="written for training")
    parser.add_argument("--val", required=True, metavar="V.json", help="written for validation")
    parser.add_argument("--by", required=True, choices=("video", "time"), help="what is parted")
    parser.add_argument(
        "--val-share", type=float, metavar="S",
        help="share of the videos, or of each video's annotated frames, for validation (0.2)",
    )
    parser.add_argument(
        "--val-videos", nargs="+", metavar="NAME", help="by video: these ones for validation"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="by video: draw them (else they are spread evenly)"
    )
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.by == "time" and (args.val_videos or args.seed is not None):
        parser.error("--val-videos and --seed choose videos, which --by time does not")
    if args.val_videos and (args.seed is not None or args.val_share is not None):
        parser.error("--val-videos names the videos; leave --val-share and --seed out")
    paths = {os.path.realpath(path) for path in (args.input, args.train, args.val)}
    if len(paths) < 3:
        parser.error("input, --train and --val must be three files")
    return args


def split(args: argparse.Namespace) -> None:
    """Do what the arguments say, and tell what came out."""
    data = read_coco_vid(args.input)
    share = 0.2 if args.val_share is None else args.val_share
    try:
        if args.by == "time":
            parts = split_by_time(data, share)
        else:
            parts = split_by_video(data, share, args.val_videos, args.seed)
    except DataError as error:
        raise DataError(f"{args.input}: {error}") from None
    for path, part in zip((args.train, args.val), parts, strict=True):
        write_json(path, part)
    for path, part in zip((args.train, args.val), parts, strict=True):
        print(f"{path}: {summary_of(part)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = parse_arguments(argv)
    return exit_status(lambda: split(args))


if __name__ == "__main__":
    sys.exit(main())
