#!/usr/bin/env python
"""Check a video dataset: its annotations, its files and, with --frames, every frame.

    tools/check_dataset.py --annotations mine.json --image-root frames/ --frames
    tools/check_dataset.py --dataset imagenet_vid_val
    tools/check_dataset.py --config-file C
    tools/check_dataset.py --config-file C --annotations mine.json --image-root frames/
    tools/check_dataset.py --annotations stills.json --image-root frames/ --add-videos mine.json

Prints a line for each kind of fault, with a count and the first places. With a config, also how
large the objects are at its model's input, against its anchors and strides; and an input size and
anchors that suit them, as KEY VALUE pairs for the config or a command line. A config alone has all
of its datasets checked, and the objects of those for training measured. --add-videos makes videos
of a COCO file's images, by their names, and checks that. Exit status: 0 if there is no error, 1 if
there are errors, 2 if nothing could be checked.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

import clab_d2  # noqa: F401  (registers the built-in datasets)
from clab_d2.converters.add_videos import add_videos
from clab_d2.converters.coco_vid_parts import read_coco_vid, summary_of
from clab_d2.converters.dataset_checker import check_dataset
from clab_d2.data.coco_vid import load_coco_vid
from clab_d2.data.object_sizes import ObjectBoxes
from clab_d2.engine.launch import add_key_value_option, exit_status, load_config
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.engine.size_check import size_report
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import write_json


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
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
    parser.add_argument(
        "--config-file", metavar="C", help="compare object sizes with this config's model"
    )
    parser.add_argument(
        "--add-videos",
        metavar="OUT.json",
        help="write --annotations with videos: images of a folder whose names differ by their last "
        "number are the frames of one",
    )
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    if not (args.annotations or args.dataset or args.config_file):
        parser.error("give --annotations, --dataset or --config-file")
    if args.opts and not args.config_file:
        parser.error("--opts needs --config-file")
    if args.annotations and args.image_root is None:
        parser.error("--annotations needs --image-root")
    if args.add_videos and not args.annotations:
        parser.error("--add-videos needs --annotations")
    if args.add_videos and os.path.realpath(args.add_videos) == os.path.realpath(args.annotations):
        parser.error("--annotations and --add-videos must be two files")
    return args


class Dataset(NamedTuple):
    """What is to be checked.

    Attributes:
        json_file, image_root: its files.
        name: the registered dataset, if it is one.
        is_measured: whether its objects are compared with the config's model.
    """

    json_file: str
    image_root: str
    name: str | None
    is_measured: bool


def resolve(args: argparse.Namespace, cfg: CfgNode | None) -> list[Dataset]:
    """The datasets that the arguments name."""
    if args.annotations:
        json_file = args.add_videos or args.annotations
        return [Dataset(json_file, args.image_root, None, cfg is not None)]
    if args.dataset:
        return [registered(args.dataset, args.image_root, cfg is not None)]
    assert cfg is not None
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    if not names:
        raise ConfigError(
            f"{args.config_file}: DATASETS.TRAIN and TEST are empty; name the datasets there, or "
            "give --annotations and --image-root"
        )
    return [registered(name, args.image_root, name in cfg.DATASETS.TRAIN) for name in names]


def registered(name: str, image_root: str | None, is_measured: bool) -> Dataset:
    """A registered dataset, its image root as registered or as given."""
    if name not in DatasetCatalog:
        raise ConfigError(
            f"--dataset {name!r} is not registered; give --annotations and --image-root"
        )
    metadata = MetadataCatalog.get(name)
    if not metadata.get("json_file"):
        raise ConfigError(f"--dataset {name!r} has no annotation file; give --annotations")
    return Dataset(
        metadata.json_file, image_root or metadata.get("image_root", ""), name, is_measured
    )


def objects_of(dataset: Dataset) -> ObjectBoxes:
    """The objects that a training on the dataset would learn."""
    records = load_coco_vid(
        dataset.json_file, dataset.image_root, dataset.name, key_frames_only=True
    )
    return ObjectBoxes.from_records(records)


def write_with_videos(json_file: str, output: str) -> None:
    """Write a file of stills as one of videos."""
    data = read_coco_vid(json_file)
    try:
        with_videos = add_videos(data)
    except DataError as error:
        raise DataError(f"{json_file}: {error}") from None
    write_json(output, with_videos)
    print(f"{output}: written, {summary_of(with_videos)}")


def with_progress(verdicts: Iterable[Any], total: int) -> Iterable[Any]:
    return tqdm(verdicts, total=total, unit="frame", desc="frames", file=sys.stderr)


def check(args: argparse.Namespace) -> bool:
    """Check and measure what the arguments name; whether there is no error."""
    cfg = None
    if args.config_file:
        import_plugins(args.imports)
        cfg = load_config(args.config_file, args.opts)
    if args.add_videos:
        write_with_videos(args.annotations, args.add_videos)
    all_ok = True
    measured: list[Dataset] = []
    for dataset in resolve(args, cfg):
        report = check_dataset(
            dataset.json_file,
            dataset.image_root,
            frames=args.frames,
            workers=args.workers,
            classes=args.classes.split(",") if args.classes else None,
            max_examples=args.examples,
            progress=with_progress,
        )
        print(f"{dataset.json_file}: {report.lines()[0]}")
        print("\n".join(report.lines()[1:]))
        all_ok &= report.ok
        if dataset.is_measured:
            measured.append(dataset)
    if cfg is not None and measured:
        try:
            objects = ObjectBoxes.join([objects_of(dataset) for dataset in measured])
        except DataError:
            if all_ok:
                raise
            print("object sizes: looked at once the errors are mended")
        else:
            print("\n".join(size_report(cfg, objects)))
    return all_ok


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(lambda args: 0 if check(args) else 1, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
