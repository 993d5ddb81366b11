#!/usr/bin/env python
"""Check a video dataset: its annotations, its files and, with --frames, every frame.

    tools/check_dataset.py --annotations mine.json --image-root frames/ --frames
    tools/check_dataset.py --dataset imagenet_vid_val

Prints a line for each kind of fault, with a count and the first places. Exit status: 0 if there
is no error, 1 if there are errors, 2 if nothing could be checked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

import clab_d2  # noqa: F401  (registers the built-in datasets)
from clab_d2.converters.dataset_checker import check_dataset
from clab_d2.errors import ConfigError, DataError


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--annotations", metavar="JSON", help="a CocoVID or COCO file")
    which.add_argument("--dataset", metavar="NAME", help="a registered dataset")
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder that the JSON's file names are relative to"
    )
    parser.add_argument("--frames", action="store_true", help="read every frame too")
    parser.add_argument(
        "--classes", metavar="NAMES", help="class names the JSON may have, joined by commas"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="frames read at a time")
    parser.add_argument(
        "--examples", type=int, default=3, metavar="N", help="places named of each kind"
    )
    args = parser.parse_args(argv)
    if args.annotations and args.image_root is None:
        parser.error("--annotations needs --image-root")
    return args


def resolve(args: argparse.Namespace) -> tuple[str, str]:
    """The annotation file and the image root that the arguments name."""
    if args.annotations:
        return args.annotations, args.image_root
    if args.dataset not in DatasetCatalog:
        raise ConfigError(
            f"--dataset {args.dataset!r} is not registered; give --annotations and --image-root"
        )
    metadata = MetadataCatalog.get(args.dataset)
    if not metadata.get("json_file"):
        raise ConfigError(f"--dataset {args.dataset!r} has no annotation file; give --annotations")
    return metadata.json_file, args.image_root or metadata.get("image_root", "")


def with_progress(verdicts: Iterable[Any], total: int) -> Iterable[Any]:
    return tqdm(verdicts, total=total, unit="frame", desc="frames", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        json_file, image_root = resolve(args)
        report = check_dataset(
            json_file,
            image_root,
            frames=args.frames,
            workers=args.workers,
            classes=args.classes.split(",") if args.classes else None,
            max_examples=args.examples,
            progress=with_progress,
        )
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{json_file}: {report.lines()[0]}")
    print("\n".join(report.lines()[1:]))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
