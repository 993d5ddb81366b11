"""What the tools that detect in videos have in common."""

from __future__ import annotations

import argparse
import logging
import os
import warnings

from clab_d2._requirements import check_requirements, is_complete
from clab_d2.errors import ConfigError
from clab_d2.runtime.sessions import RUNTIMES
from clab_d2.video.detector import VideoDetector


def add_score_threshold(parser: argparse.ArgumentParser, formats: str) -> None:
    """Give a tool the option ``--score-threshold S``.

    Args:
        parser: the tool's.
        formats: what it writes that has no place for a score, for the help text.
    """
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        metavar="S",
        help=f"draw detections of at least this score, and have them in {formats} "
        "(default: %(default)s)",
    )


def add_shots(parser: argparse.ArgumentParser) -> None:
    """Give a tool the option ``--shots``."""
    parser.add_argument(
        "--shots", action="store_true", help="find cuts; only frames of its shot help a frame"
    )


def add_appearance(parser: argparse.ArgumentParser) -> None:
    """Give a tool that has ``--track`` the option ``--appearance``."""
    parser.add_argument(
        "--appearance",
        action="store_true",
        help="track by looks, too (bytetrack, botsort; of a training with TrackContrast)",
    )


def add_runtime_option(parser: argparse.ArgumentParser) -> None:
    """Give a tool the option ``--runtime NAME``, for exported models."""
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        metavar="NAME",
        help=f"runs an exported model: {' or '.join(RUNTIMES)} (default: what is there)",
    )


def check_score_threshold(args: argparse.Namespace) -> None:
    """Raise a ConfigError where ``--score-threshold`` is no score."""
    if not 0 <= args.score_threshold <= 1:
        raise ConfigError(f"--score-threshold is {args.score_threshold}; it must be from 0 to 1")


def build_detector(args: argparse.Namespace) -> VideoDetector:
    """The detector of ``--weights``, by its own config or by that of ``--config-file``; of an
    exported model, where the tool has the option ``--runtime``."""
    runtime = getattr(args, "runtime", None)
    if args.weights and os.path.isdir(args.weights) and not hasattr(args, "runtime"):
        raise ConfigError(
            f"--weights {args.weights}: an exported model can't be looked into; name the file that "
            "it was made of"
        )
    if not args.config_file:
        return VideoDetector.from_file(args.weights, options=args.opts, runtime=runtime)
    check_requirements()
    from clab_d2.engine.config_file import load_config

    options = [*args.opts, *(("MODEL.WEIGHTS", args.weights) if args.weights else ())]
    return VideoDetector(load_config(args.config_file, options, needs_datasets=False))


def set_up() -> None:
    """The log, and what is not to be said: once, where a tool is the process's command."""
    if is_complete():
        from detectron2.utils.logger import setup_logger

        setup_logger(name="clab_d2")
    else:  # an exported model runs without
        logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    # What Detectron2 calls by an old name works all the same; nobody can act on it here.
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    # Nor on the type that an exported graph's empty list of padding gets.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="torch.meshgrid")
