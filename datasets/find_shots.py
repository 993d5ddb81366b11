#!/usr/bin/env python
"""Find where the videos of a CocoVID file cut, and write it into the file ("shots").

    datasets/find_shots.py films.json --image-root clips/ --output films.json

References are then drawn within the key frame's shot, in training and in evaluation, and
post-processing ends at cuts. The file should list all frames of a video, not every tenth: what
changes between neighbours is what tells a cut. Take out by hand what is no cut.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from clab_d2.converters.coco_vid_parts import read_coco_vid
from clab_d2.converters.command_line import exit_status
from clab_d2.converters.shots import add_shots
from clab_d2.io import write_json


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN.json", help="the annotations, CocoVID")
    parser.add_argument(
        "--image-root", required=True, metavar="DIR", help="folder of the frames or video files"
    )
    parser.add_argument(
        "--output", required=True, metavar="OUT.json", help="written; it may be IN.json"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    data = read_coco_vid(args.input)
    for name, shots in add_shots(data, args.input, args.image_root):
        print(f"{name}: {len(shots)} shots, from frames {', '.join(map(str, shots))}", flush=True)
    write_json(args.output, data)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = make_parser().parse_args(argv)
    return exit_status(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
