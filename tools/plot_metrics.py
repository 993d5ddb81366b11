#!/usr/bin/env python
"""Plot losses, contrastive weight and AP over the iterations of one or several trainings.

    tools/plot_metrics.py output/MiniVID/clab --output metrics.png
    tools/plot_metrics.py output/single output/clab --labels "single frame" CLAB --output two.png
    tools/plot_metrics.py output/clab --metrics "loss_*" lr --output losses.png

Each run is its metrics.json, or the folder that holds it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clab_d2.engine.launch import exit_status
from clab_d2.errors import ConfigError
from clab_d2.inspection.training_history import (
    DEFAULT_METRICS,
    choose_metrics,
    history_figure,
    read_history,
)
from clab_d2.io import atomic_write


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="see above")
    parser.add_argument("--output", required=True, metavar="FILE", help=".png, .svg or .pdf")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="default: the folders' names")
    parser.add_argument(
        "--metrics", nargs="+", default=list(DEFAULT_METRICS), metavar="PATTERN",
        help="names or shell patterns (default: losses, contrastive weight, AP)",
    )  # fmt: skip
    parser.add_argument(
        "--smooth", type=int, default=1, metavar="N", help="draw means over N values, too"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    suffix = Path(args.output).suffix.lower()
    if suffix not in {".png", ".svg", ".pdf"}:
        raise ConfigError(f"--output {args.output}: name a .png, .svg or .pdf")
    if args.labels is not None and len(args.labels) != len(args.runs):
        raise ConfigError(f"--labels: {len(args.labels)} names for {len(args.runs)} runs")
    if args.smooth < 1:
        raise ConfigError(f"--smooth is {args.smooth}; it must be at least 1")
    labels = args.labels or [None] * len(args.runs)
    histories = [read_history(*run) for run in zip(args.runs, labels, strict=True)]
    metrics = choose_metrics(histories, args.metrics)
    figure = history_figure(histories, metrics, args.smooth)
    with atomic_write(args.output, "wb") as file:
        figure.savefig(file, dpi=90, format=suffix[1:])
    print(f"{args.output} written: {', '.join(metrics)}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
