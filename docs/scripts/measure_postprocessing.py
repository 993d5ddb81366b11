#!/usr/bin/env python
"""Measure what post-processing brings, from prediction files of trained runs; no model is run.

    python docs/scripts/measure_postprocessing.py --annotations val.json \\
        --group 'single frame=study/runs/single_frame/*/inference/*/predictions.json' \\
        --group 'CLAB=study/runs/clab/*/inference/*/predictions.json' --page docs/evaluation.md

Prints two tables: the figures, as mean and sample standard deviation over the runs of a group, and
by how much each method of post-processing changes them, run by run. --page puts them into the page,
between its two comments that name this script.
"""

from __future__ import annotations

import argparse
import glob
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from clab_d2.evaluation import Detections, GroundTruth, compute_metrics
from clab_d2.evaluation.comparison import Spread
from clab_d2.evaluation.detections import load_results
from clab_d2.evaluation.flicker import measure_flicker
from clab_d2.postprocessing import PostProcessResults, SeqNMS, SmoothScores

METHODS = {
    "none": None,
    "`seq_nms`": PostProcessResults(SeqNMS()),
    "`seq_nms SUPPRESS_IOU=0.5`": PostProcessResults(SeqNMS(suppress_iou=0.5)),
    "`smooth_scores`": PostProcessResults(SmoothScores()),
}
COLUMNS = {
    "vid/AP50": "AP50",
    "vid/AP50-slow": "slow",
    "vid/AP50-medium": "medium",
    "vid/AP50-fast": "fast",
    "flicker/found": "found",
    "flicker/class-changes": "class changes",
    "flicker/gaps": "gaps",
    "flicker/jitter": "jitter",
}
_BETWEEN = re.compile(
    r"(<!-- begin: docs/scripts/measure_postprocessing\.py -->\n).*?"
    r"(<!-- end: docs/scripts/measure_postprocessing\.py -->)",
    re.S,
)


def figures_of(
    truth: GroundTruth, path: str, method: PostProcessResults | None
) -> dict[str, float]:
    """What evaluate.py says of a file, by the names of ``COLUMNS``."""
    results = load_results(path, truth)
    if method is not None:
        results = method(results, truth)
    detections = Detections.from_results(results, truth, path)
    vid = compute_metrics(truth, detections).vid
    flicker = measure_flicker(truth, detections).as_dict()
    return {f"vid/{k}": v for k, v in vid.items()} | {f"flicker/{k}": v for k, v in flicker.items()}


def make_tables(truth: GroundTruth, groups: dict[str, list[str]]) -> str:
    """The two tables, as Markdown."""
    values, changes = [], []
    for label, paths in groups.items():
        plain = [figures_of(truth, path, None) for path in paths]
        for name, method in METHODS.items():
            runs = [figures_of(truth, path, method) for path in paths] if method else plain
            spreads = [Spread.of([run[key] for run in runs]) for key in COLUMNS]
            values.append([label, len(paths), name, *(_show(spread) for spread in spreads)])
            if method is not None:
                spreads = [
                    Spread.of([new[key] - old[key] for new, old in zip(runs, plain, strict=True)])
                    for key in COLUMNS
                ]
                row = [label, name, *(_show(spread, "+") for spread in spreads)]
                changes.append(row)
    tables = (
        (values, ["detector", "runs", "post-processing", *COLUMNS.values()]),
        (changes, ["detector", "change by", *COLUMNS.values()]),
    )
    return "\n\n".join(
        tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
        for rows, headers in tables
    )


def _show(spread: Spread, sign: str = "") -> str:
    if math.isnan(spread.mean):
        return "-"
    std = "" if math.isnan(spread.std) else f" ± {spread.std:.1f}"
    return f"{spread.mean:{sign}.1f}{std}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, metavar="GT.json")
    parser.add_argument("--group", action="append", required=True, metavar="NAME=PATTERN")
    parser.add_argument("--page", type=Path, metavar="PAGE.md")
    args = parser.parse_args(argv)
    groups = {}
    for group in args.group:
        label, _, pattern = group.partition("=")
        groups[label] = sorted(glob.glob(pattern, recursive=True))
        if not groups[label]:
            parser.error(f"--group {group}: no file matches")
    tables = make_tables(GroundTruth.from_file(args.annotations), groups)
    print(tables)
    if args.page:
        text = args.page.read_text(encoding="utf-8")
        new, count = _BETWEEN.subn(lambda found: f"{found[1]}\n{tables}\n\n{found[2]}", text)
        if count != 1:
            parser.error(f"{args.page}: needs the two comments of this script, once")
        args.page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
