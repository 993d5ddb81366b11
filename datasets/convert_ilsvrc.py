#!/usr/bin/env python
"""Convert ILSVRC's VID and DET annotations to the JSON files that clab_d2 reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from clab_d2.converters.command_line import exit_status
from clab_d2.converters.ilsvrc import convert


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="ILSVRC folder (Annotations/, Lists/)")
    parser.add_argument("--output", required=True, help="folder for the JSON files")
    parser.add_argument("--jobs", type=int, help="processes (default: one a core)")
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first unreadable annotation file"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return exit_status(lambda: convert(args.root, args.output, args.jobs, args.strict))


if __name__ == "__main__":
    sys.exit(main())
