#!/usr/bin/env python
"""Train or evaluate a detector on videos.

    tools/train_net.py --config-file configs/MiniVID/clab.yaml
    tools/train_net.py --config-file configs/ImageNetVID/clab_R_101_DC5.yaml --num-gpus 8
    tools/train_net.py --config-file C --resume
    tools/train_net.py --config-file C --eval-only MODEL.WEIGHTS output/model_final.pth

Training writes checkpoints, metrics.json and TensorBoard files to OUTPUT_DIR; evaluation writes
predictions.json and metrics.json to OUTPUT_DIR/inference/<dataset>. Ctrl-C and SIGTERM end the
iteration and save a checkpoint; --resume goes on from the last one, after any kind of end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from clab_d2.engine import Trainer, argument_parser, run
from clab_d2.errors import ConfigError


def train_or_evaluate(args: argparse.Namespace, cfg: CfgNode) -> None:
    """What each process of the job does."""
    if args.eval_only:
        evaluate(args, cfg)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def evaluate(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Evaluate ``MODEL.WEIGHTS``, or with --resume the last checkpoint of ``OUTPUT_DIR``."""
    model = Trainer.build_model(cfg)
    checkpointer = Trainer.build_checkpointer(cfg, model, purpose="inference")
    if not cfg.MODEL.WEIGHTS and not (args.resume and checkpointer.has_checkpoint()):
        raise ConfigError("--eval-only needs weights; add MODEL.WEIGHTS path/to/model_final.pth")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)


def make_parser() -> argparse.ArgumentParser:
    return argument_parser(epilog=__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    return run(train_or_evaluate, make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
