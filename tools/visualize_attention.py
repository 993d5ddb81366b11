#!/usr/bin/env python
"""Draw what a detection took from other frames: SELSA's proposals, Temporal RoI Align's positions.

    tools/visualize_attention.py --weights model_final.pth --input clip.mp4 --frame 30 \\
        --output attention.png
    tools/visualize_attention.py --weights W --input frames/ --frame 30 --class zebra --output A.png

Without --detection or --class it is the detection of the highest score. All of the frame's are
listed with their numbers. docs/look_inside.md says how to read the picture.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from clab_d2.engine.launch import add_key_value_option, exit_status
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError, DataError
from clab_d2.inspection.attention import KeyFrameAttention
from clab_d2.inspection.attention_drawing import attention_figure
from clab_d2.io import atomic_write
from clab_d2.video import open_video
from clab_d2.video.command_line import build_detector


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="W", help="the trained model")
    parser.add_argument(
        "--config-file", metavar="C", help="the model's config (default: the one that W carries)"
    )
    parser.add_argument("--input", required=True, metavar="VIDEO", help="file or folder of frames")
    parser.add_argument("--frame", type=int, required=True, metavar="N", help="from 0")
    parser.add_argument("--output", required=True, metavar="FILE", help=".png, .jpg, .svg or .pdf")
    parser.add_argument("--detection", type=int, metavar="I", help="its number in the list")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="the best of this class")
    parser.add_argument(
        "--layer", type=int, metavar="L", help="SELSA after which FC layer, from 1 (default: last)"
    )
    parser.add_argument("--references", type=int, default=5, metavar="N", help="frames to show")
    parser.add_argument("--proposals", type=int, default=4, metavar="N", help="to show of each")
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    if Path(args.output).suffix.lower() not in {".png", ".jpg", ".svg", ".pdf"}:
        raise ConfigError(f"--output {args.output}: name a .png, .jpg, .svg or .pdf")
    if args.references < 1 or args.proposals < 1:
        raise ConfigError("--references and --proposals must be at least 1")
    if args.detection is not None and args.class_name is not None:
        raise ConfigError("--detection and --class choose twice; give one of them")


def choose(args: argparse.Namespace, frame: KeyFrameAttention, names: Sequence[str]) -> int:
    """Number of the detection that is asked for; of the highest score by default."""
    classes = [names[index] for index in frame.instances.pred_classes.tolist()]
    if not classes:
        raise DataError(f"{args.input}: nothing is detected in frame {args.frame}; try another")
    if args.detection is not None:
        if not 0 <= args.detection < len(classes):
            raise ConfigError(
                f"--detection is {args.detection}; frame {args.frame} has 0 to {len(classes) - 1}"
            )
        return args.detection
    if args.class_name is not None:
        if args.class_name not in names:
            raise ConfigError(f"--class {args.class_name}: choose among {', '.join(names)}")
        if args.class_name not in classes:
            raise DataError(
                f"{args.input}: no {args.class_name} in frame {args.frame}, where "
                f"{', '.join(dict.fromkeys(classes))} are detected"
            )
        return classes.index(args.class_name)
    return 0


def run(args: argparse.Namespace) -> None:
    check_arguments(args)
    import_plugins(args.imports)
    with open_video(args.input) as source:
        detector = build_detector(args)
        frame = KeyFrameAttention(detector.cfg, detector.model, source, args.frame)
    names = detector.class_names
    chosen = choose(args, frame, names)
    scores, classes = frame.instances.scores.tolist(), frame.instances.pred_classes.tolist()
    for index in range(min(len(scores), max(10, chosen + 1))):
        mark = "*" if index == chosen else " "
        print(f"{mark} {index}: {names[classes[index]]} {100 * scores[index]:.0f}%")
    attention = frame.of(chosen)
    layers = len(attention.proposals)
    layer = layers if args.layer is None else args.layer
    if attention.proposals and not 1 <= layer <= layers:
        raise ConfigError(f"--layer is {args.layer}; SELSA follows {layers} FC layers")
    if attention.proposals:
        print("SELSA's weight by reference frame:", ", ".join(
            f"{number}: {100 * proposals.weights.sum():.1f}%"
            for number, proposals in sorted(attention.proposals[layer - 1].items())
        ))  # fmt: skip
    if attention.own_weights is not None:
        own = 100 * attention.own_weights.mean()
        print(f"Temporal RoI Align keeps {own:.1f}% of the key frame's own RoI features")
    figure = attention_figure(
        frame, chosen, f"{names[classes[chosen]]} {100 * scores[chosen]:.0f}%",
        num_references=args.references, num_proposals=args.proposals, layer=layer - 1,
    )  # fmt: skip
    with atomic_write(args.output, "wb") as file:
        figure.savefig(file, dpi=100, format=Path(args.output).suffix[1:].lower())
    print(f"{args.output} written")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


def set_up() -> None:
    """Once, where this is the process's command."""
    # What Detectron2 calls by an old name works all the same; nobody can act on it here.
    warnings.filterwarnings("ignore", message="torch.meshgrid")


if __name__ == "__main__":
    set_up()
    sys.exit(main())
