#!/usr/bin/env python
"""Count a detector's parameters, multiply-adds and activations by part, in training and inference.

    tools/analyze_model.py --config-file configs/ImageNetVID/clab_R_101_DC5.yaml
    tools/analyze_model.py --config-file C --size 480x800 --references 30 --json cost.json

No weights and no data are needed. Counted is the forward pass (the backward pass is about twice
that): in training of one clip, at inference of one key frame whose references are in memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import warnings
from collections.abc import Sequence

from tabulate import tabulate

from clab_d2.engine.launch import add_key_value_option, exit_status, load_config
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError
from clab_d2.inspection.model_analysis import ModelAnalysis, PassCost, analyze_model
from clab_d2.io import write_json


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C")
    parser.add_argument(
        "--size", metavar="HxW",
        help="of the model's frames (default: INPUT.MIN_SIZE_TEST x INPUT.MAX_SIZE_TEST)",
    )  # fmt: skip
    parser.add_argument(
        "--references", type=int, metavar="N", help="at inference (default: TEST.REFERENCES.NUM)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    parser.add_argument(
        "--uncounted", action="store_true", help="list the operators that have no count"
    )
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def table(cost: PassCost) -> str:
    rows = [
        [part.name, part.parameters / 1e6, part.multiply_adds / 1e9, part.activations / 1e6]
        for part in [*cost.parts, cost.total]
    ]
    headers = ["part", "parameters (M)", "multiply-adds (G)", "activations (M)"]
    return tabulate(rows, headers, floatfmt=(None, ".3f", ".3f", ".2f"))


def verdict(analysis: ModelAnalysis) -> str | None:
    """What the contrastive branch costs, in a sentence."""
    without = analysis.inference_without_branch
    if without is None:
        return None
    name = "contrastive_branch"
    in_training, at_inference = analysis.training.part(name), analysis.inference.part(name)
    share = 100 * in_training.multiply_adds / analysis.training.total.multiply_adds
    with_it, total = analysis.inference.total, without.total
    same = (with_it.multiply_adds, with_it.activations) == (total.multiply_adds, total.activations)
    return (
        f"The contrastive branch: {in_training.multiply_adds / 1e9:.3f} G multiply-adds in "
        f"training ({share:.1f}%), {at_inference.multiply_adds / 1e9:.3f} G at inference. Taken "
        f"out, inference costs {total.multiply_adds / 1e9:.3f} G: "
        f"{'the same to the last multiply-add' if same else 'NOT the same'}."
    )


def run(args: argparse.Namespace) -> None:
    import_plugins(args.imports)
    cfg = load_config(args.config_file, args.opts, needs_datasets=False)
    size = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    if args.size is not None:
        match = re.fullmatch(r"(\d+)x(\d+)", args.size)
        if match is None:
            raise ConfigError(f"--size is {args.size}; give HEIGHTxWIDTH, such as 600x1000")
        size = (int(match[1]), int(match[2]))
    if min(size) < 32:
        raise ConfigError(f"frames of {size[0]}x{size[1]} are too small; give --size HEIGHTxWIDTH")
    if args.references is not None and args.references < 1:
        raise ConfigError(f"--references is {args.references}; it must be at least 1")
    analysis = analyze_model(cfg, size, args.references)
    for cost in (analysis.training, analysis.inference):
        print(f"\n{cost.what}; frames of {size[0]}x{size[1]}\n\n{table(cost)}")
        if args.uncounted:
            print("without a count:", ", ".join(f"{k} {v}" for k, v in cost.uncounted.items()))
    sentence = verdict(analysis)
    if sentence is not None:
        print(f"\n{sentence}")
    if args.json:
        write_json(args.json, dataclasses.asdict(analysis), indent=1)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


def set_up() -> None:
    """Once, where this is the process's command."""
    # What torch says of its own tracing, nobody can act on here.
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    set_up()
    sys.exit(main())
