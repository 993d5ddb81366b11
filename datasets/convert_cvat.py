#!/usr/bin/env python
"""Convert exports "CVAT for video 1.1" (of tasks, jobs or projects) to one CocoVID JSON.

    datasets/convert_cvat.py --input exports/*.zip --output mine.json
    datasets/convert_cvat.py --input exports/ --clips --output train.json --val-output val.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from clab_d2.converters.coco_vid_builder import ConversionOptions, Counts, Json
from clab_d2.converters.command_line import converter_parser, run_converter
from clab_d2.converters.cvat import NAMES, convert_cvat


def make_parser() -> argparse.ArgumentParser:
    parser = converter_parser(
        __doc__, "annotations.xml files, CVAT's zip files, or folders of them", clips="{source}"
    )
    parser.add_argument(
        "--name-by", choices=NAMES, default="source",
        help="call a video after its file, its task or the exported file (source)",
    )
    parser.add_argument(
        "--key-frames-only", action="store_true",
        help="frames with interpolated boxes only are references, neither trained nor tested on",
    )
    parser.add_argument(
        "--fill-gaps", action="store_true",
        help="of a task with a frame step, list the frames between (and after the last) as "
        "references too",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""

    def convert(args: argparse.Namespace, options: ConversionOptions) -> tuple[Json, Counts]:
        return convert_cvat(args.input, options, args.name_by)

    return run_converter(make_parser(), argv, convert)


if __name__ == "__main__":
    sys.exit(main())
