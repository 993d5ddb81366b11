#!/usr/bin/env python
"""Measure detections in files: COCO box AP and VID AP50, of one detector or several side by side.

Examples:
    tools/evaluate.py --annotations val.json --predictions out/predictions.json --output m.json
    tools/evaluate.py --annotations val.json --predictions single.json clab.json --plot plots
    tools/evaluate.py --annotations val.json --group 'single=out/single_s*/**/predictions.json' \\
        --group 'CLAB=out/clab_s*/**/predictions.json' --plot plots --output comparison.json

Predictions are COCO result lists, as tools/train_net.py writes them. Runs of one config (under one
label) are given with their mean and standard deviation. All figures are in percent.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clab_d2.config import get_clab_cfg
from clab_d2.engine.config_file import merge_options
from clab_d2.errors import ConfigError, DataError
from clab_d2.evaluation import Detections, GroundTruth
from clab_d2.evaluation.comparison import Comparison, Run, measure_run
from clab_d2.evaluation.detections import load_results
from clab_d2.evaluation.flicker import measure_flicker
from clab_d2.evaluation.plots import draw_all
from clab_d2.evaluation.track_metric import measure_tracks
from clab_d2.io import write_json
from clab_d2.postprocessing import (
    POSTPROCESSING_REGISTRY,
    PostProcessResults,
    build_postprocessing,
)

METHODS = POSTPROCESSING_REGISTRY.names()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--annotations", required=True, metavar="GT.json", help="the truth, COCO or CocoVID"
    )
    parser.add_argument(
        "--predictions", nargs="+", default=[], metavar="P.json",
        help="one file a run, or one folder of files, such as tools/detect_videos.py writes",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME",
        help="a name for each file of --predictions; files of one name are runs of one config "
        "(default: what tells the paths apart)",
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="runs of one config: all files that match the pattern (** is any folders); repeatable",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="measure these classes only (default: all categories of the truth)",
    )
    parser.add_argument(
        "--output",
        metavar="M.json",
        help="write the metrics; of several files, those of each run, of each config, and the "
        "worst videos",
    )
    parser.add_argument(
        "--flicker",
        nargs="?",
        type=float,
        const=0.5,
        metavar="S",
        help="also measure flicker along the truth's tracks, of detections of at least this score "
        "(default: %(const)s)",
    )
    parser.add_argument(
        "--tracks",
        action="store_true",
        help="also measure HOTA, MOTA and IDF1 of the track_id that the predictions have",
    )
    parser.add_argument(
        "--postprocess",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help=f"first post-process the detections of each video: {' or '.join(METHODS)}, with keys "
        "of TEST.POSTPROCESS such as LINK_IOU=0.5",
    )
    parser.add_argument("--plot", metavar="DIR", help="draw curves and charts into this folder")
    parser.add_argument(
        "--worst", type=int, default=10, metavar="N", help="list the N worst videos (default: 10)"
    )
    return parser


def list_runs(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Label and path of each run.

    Raises:
        ConfigError: the options contradict each other, or a pattern matches nothing.
    """
    labels = args.labels or short_names(args.predictions)
    if len(labels) != len(args.predictions):
        raise ConfigError(
            f"--labels gives {len(labels)} names for {len(args.predictions)} files of "
            "--predictions; give one for each"
        )
    runs = list(zip(labels, args.predictions, strict=True))
    for group in args.group:
        label, found, pattern = group.partition("=")
        if not (label and found and pattern):
            raise ConfigError(f"--group {group!r}: write NAME=PATTERN")
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise ConfigError(f"--group {group!r}: no file matches {pattern}")
        runs += [(label, path) for path in paths]
    if not runs:
        raise ConfigError("nothing to evaluate: give --predictions or --group")
    return runs


def check_classes(names: Sequence[str], truth: GroundTruth) -> None:
    """Raise a ConfigError for a name of ``--classes`` that the truth does not have."""
    unknown = [name for name in names if name not in truth.class_names]
    if unknown:
        raise ConfigError(
            f"--classes: {truth.source} has no category {unknown[0]!r}; it has "
            f"{', '.join(truth.class_names)}"
        )


def short_names(paths: Sequence[str]) -> list[str]:
    """What tells paths apart: without the folders before and the names after that all share."""
    parts = [Path(os.path.abspath(path)).with_suffix("").parts for path in paths]
    if len(set(parts)) <= 1:
        return [Path(path).stem for path in paths]
    shortest = min(map(len, parts))
    start = end = 0
    while start < shortest - 1 and len({part[start] for part in parts}) == 1:
        start += 1
    while end < shortest - 1 - start and len({part[-1 - end] for part in parts}) == 1:
        end += 1
    return ["/".join(part[start : len(part) - end]) for part in parts]


def build_method(postprocess: Sequence[str] | None) -> PostProcessResults | None:
    """What ``--postprocess`` asks for.

    Raises:
        ConfigError: the method or a key is unknown, or a value can't be used.
    """
    if postprocess is None:
        return None
    name, *pairs = postprocess
    options = ["TEST.POSTPROCESS.NAME", name]
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--postprocess {name} {pair}: write KEY=VALUE, as LINK_IOU=0.5")
        options += [f"TEST.POSTPROCESS.{key}", value]
    cfg = get_clab_cfg()
    merge_options(cfg, options)
    method = build_postprocessing(cfg)
    if method is None:
        raise ConfigError(f"--postprocess: name a method: {', '.join(METHODS)}")
    return PostProcessResults(method)


def measure(
    args: argparse.Namespace,
    truth: GroundTruth,
    method: PostProcessResults | None,
    label: str,
    path: str,
) -> Run:
    """All figures of one file of predictions."""
    results = load_results(path, truth)
    if method is not None:
        try:
            results = method(results, truth)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    detections = Detections.from_results(results, truth, path)
    more = {}
    if args.flicker is not None:
        flicker = measure_flicker(truth, detections, args.flicker)
        more["flicker"] = {"score-threshold": args.flicker, **flicker.as_dict()}
    if args.tracks:
        more["tracks"] = measure_tracks(truth, detections, path)
    return measure_run(truth, detections, label, path, more)


def evaluate(args: argparse.Namespace) -> None:
    runs = list_runs(args)
    if args.flicker is not None and not 0 <= args.flicker <= 1:
        raise ConfigError(f"--flicker is {args.flicker}; it must be from 0 to 1")
    method = build_method(args.postprocess)
    truth = GroundTruth.from_file(args.annotations)
    if args.classes:
        check_classes(args.classes, truth)
        truth = truth.only_classes(args.classes)
    measured = []
    for number, (label, path) in enumerate(runs, start=1):
        if len(runs) > 1:
            print(f"[{number}/{len(runs)}] {label}: {path}", file=sys.stderr)
        # One at a time: of each only its figures and curves are kept.
        measured.append(measure(args, truth, method, label, path))
    comparison = Comparison(truth, measured)
    if len(runs) == 1:
        result = measured[0].as_json()
        first = measured[0].metrics.table()
    else:
        result = comparison.as_json(args.worst)
        first = comparison.overall_table()
    parts = [first, comparison.more_tables(), comparison.worst_table(args.worst)]
    if len(runs) > 1:
        parts.insert(2, comparison.class_table())
    # Files first: what reads the tables may end early, as `head` does.
    files = draw_all(comparison, args.plot, args.worst) if args.plot else []
    if args.output:
        write_json(args.output, result, indent=2)
    print("\n\n".join(part for part in parts if part))
    if files:
        print("\nPlots:", *files, sep="\n  ")
    if args.output:
        print(f"Metrics are in {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        evaluate(make_parser().parse_args(argv))
    except (DataError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
