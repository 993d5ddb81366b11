#!/usr/bin/env python
"""Keep every Nth annotated frame of a CocoVID file's videos: to measure in less time.

    datasets/thin_coco_vid.py val.json val_every_10th.json --every 10

All frames stay in the file, the others as references only ("annotated": false). Whether an object
is slow or fast is still told by all its boxes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from clab_d2.converters.coco_vid_parts import read_coco_vid, summary_of
from clab_d2.converters.command_line import exit_status
from clab_d2.converters.thin_coco_vid import thin
from clab_d2.io import write_json


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN.json", help="the annotations, CocoVID or COCO")
    parser.add_argument("output", metavar="OUT.json", help="written")
    parser.add_argument("--every", type=int, required=True, metavar="N", help="keep one of N")
    return parser


def write_thinned(args: argparse.Namespace) -> None:
    """Do what the arguments say, and tell what came out."""
    thinned = thin(read_coco_vid(args.input), args.every)
    write_json(args.output, thinned)
    print(f"{args.output}: {summary_of(thinned)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error("--every must be at least 1")
    if os.path.realpath(args.input) == os.path.realpath(args.output):
        parser.error("input and output must be two files")
    return exit_status(lambda: write_thinned(args))


if __name__ == "__main__":
    sys.exit(main())
