#!/usr/bin/env python
"""Convert weights of MMTracking 0.x, the CLAB release or torchvision to a file for MODEL.WEIGHTS.

A .safetensors file, which can hold no code, is read and written alike; weights of our own convert
from and to it.

Examples:
    tools/convert_checkpoint.py troialign_r50.pth out.pth
    tools/convert_checkpoint.py resnet50-11ad3fa6.pth r50.pth --config-file C
    tools/convert_checkpoint.py output/model_final.pth model.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from clab_d2.checkpoint.convert import Conversion, Options, convert_file, read_class_order
from clab_d2.engine.launch import load_config
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError, DataError


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="the checkpoint to convert")
    parser.add_argument("output", metavar="OUT", help="the file to write, .pth or .safetensors")
    parser.add_argument(
        "--config-file", metavar="C", help="refuse weights that do not fit this config"
    )
    parser.add_argument(
        "--class-order",
        metavar="NAMES",
        help="the checkpoint's classes in its order: names joined by commas, a COCO JSON, or a "
        "text file with a name a line (default: what the checkpoint says of itself)",
    )
    parser.add_argument(
        "--new-classes",
        action="store_true",
        help="leave class scores and boxes out, to train on other classes",
    )
    parser.add_argument(
        "--num-ratios",
        type=int,
        metavar="N",
        help="aspect ratios of the checkpoint's anchors (default: the config's, else 3)",
    )
    parser.add_argument(
        "--trust", action="store_true", help="read IN even if it may run code; know its source"
    )
    add_import_option(parser)
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys to change, after --config-file's"
    )
    return parser


def report(result: Conversion, output: str) -> list[str]:
    """What became of the checkpoint, as lines to print."""
    lines = [f"found: {result.kind}"]
    placed = result.num_keys - len(result.left_out) - len(result.unplaced)
    counters = sum(key.endswith("num_batches_tracked") for key in result.left_out)
    others = [key for key in result.left_out if not key.endswith("num_batches_tracked")]
    lines.append(f"placed {placed} of {result.num_keys} weights")
    if counters:
        lines.append(f"left out {counters} batch counters (num_batches_tracked)")
    if others:
        lines.append(f"left out, being the ImageNet classifier: {', '.join(others)}")
    lines += [f"could not place: {key}" for key in result.unplaced]
    lines += result.notes
    lines.append(f"wrote {output}; use it as MODEL.WEIGHTS {output}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_intermixed_args(argv)
    try:
        import_plugins(args.imports)
        cfg = None
        if args.config_file:
            cfg = load_config(args.config_file, args.opts)
        elif args.opts:
            raise DataError(f"{args.opts[0]}: config keys need a --config-file to change")
        options = Options(
            num_ratios=args.num_ratios,
            class_order=read_class_order(args.class_order) if args.class_order else None,
            new_classes=args.new_classes,
        )
        result = convert_file(args.input, args.output, cfg, options, trusted=args.trust)
    except (DataError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(result, args.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
