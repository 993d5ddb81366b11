#!/usr/bin/env python
"""Seconds of a training step of several configs, in turns, and how many fit into one of the first.

    docs/scripts/measure_steps.py configs/MiniVID/clab.yaml configs/MiniVID/temporal_dense.yaml

A step is the losses of a batch, their gradients and the optimizer's step; loading is left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from clab_d2.engine import Trainer, load_config
from clab_d2.engine.launch import exit_status
from clab_d2.modeling.optimize import to_channels_last

# Their seconds are not told: memory is taken, loops are compiled.
WARM_UP = 2


def steps(config: str, options: Sequence[str]) -> Iterator[float]:
    """Seconds of one training step after the other, without end."""
    cfg = load_config(config, [*options, "DATALOADER.NUM_WORKERS", "0"])
    model = build_model(cfg).train()
    if cfg.SOLVER.CHANNELS_LAST:
        to_channels_last(model)
    optimizer = Trainer.build_optimizer(cfg, model)
    batches: Iterator[list[Any]] = iter(Trainer.build_train_loader(cfg, model))
    for number, batch in enumerate(batches):
        start = time.perf_counter()
        with EventStorage(number):
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
        yield time.perf_counter() - start


def measure(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    running = [steps(config, args.opts) for config in args.configs]
    seconds: list[list[float]] = [[] for _ in running]
    for number in range(WARM_UP + args.rounds):
        for config, of_config in zip(running, seconds, strict=True):
            taken = next(config)
            if number >= WARM_UP:
                of_config.append(taken)
    for config, of_config in zip(args.configs, seconds, strict=True):
        print(
            f"{config}: {statistics.median(of_config):.3f} s a step ({min(of_config):.3f} to "
            f"{max(of_config):.3f}); {sum(seconds[0]) / sum(of_config):.2f} in the time of one"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config files")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each (default: 20)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1)")
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of every config"
    )
    return exit_status(measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
