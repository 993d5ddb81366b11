"""The trainer: Detectron2's, with clips for data, VID metrics and safe checkpoints."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clab_d2.data import (
    build_vid_test_loader,
    build_vid_train_loader,
    check_files,
    collect_bad_frames,
)
from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.engine.hooks import DataOrder, StopOnSignal
from clab_d2.engine.optimizer import build_optimizer
from clab_d2.errors import ConfigError
from clab_d2.evaluation import VIDEvaluator
from clab_d2.modeling import prepare_for_inference

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates detectors on videos, on CUDA or CPU, in one or several processes."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the config; its schedule is scaled to the number of processes where
                ``SOLVER.REFERENCE_WORLD_SIZE`` says so (:meth:`auto_scale_workers`).

        Raises:
            ConfigError, DataError: a dataset can't be used, those of the evaluation included, so
                that this shows before the first iteration and not after the last.
        """
        self.check_test_data(cfg)
        # DefaultTrainer calls its own version of this, which then finds nothing left to scale.
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        with _ddp_for_device(cfg.MODEL.DEVICE):
            super().__init__(cfg)

    # ---------------------------------------------------------------- parts

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_vid_train_loader(cfg)

    @classmethod
    def check_test_data(cls, cfg: CfgNode) -> None:
        """Look at what :meth:`build_test_loader` is going to need; override them together."""
        check_files(cfg.DATASETS.TEST)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_vid_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return VIDEvaluator(dataset_name, output_dir=output_dir)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_checkpointer(
        cls, cfg: CfgNode, model: nn.Module, *, fine_tune: bool = False, **checkpointables: Any
    ) -> VIDCheckpointer:
        """The checkpointer for training (``fine_tune``) or inference on ``OUTPUT_DIR``."""
        return VIDCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            fine_tune=fine_tune,
            trusted=cfg.MODEL.TRUST_WEIGHTS,
            **checkpointables,
        )

    def build_hooks(self) -> list[HookBase]:
        # The hooks take self.checkpointer over, so this is the place to put ours.
        self.checkpointer = self.build_checkpointer(
            self.cfg, self.model, fine_tune=True, trainer=weakref.proxy(self)
        )
        hooks = [hook for hook in super().build_hooks() if hook is not None]
        for hook in hooks:
            if isinstance(hook, PeriodicWriter):
                hook._period = self.cfg.SOLVER.LOG_PERIOD
        # Behind scheduler and checkpointer, so that what is saved is the state after the
        # iteration; before an evaluation, which would take long to end.
        at = next(index for index, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks.insert(at, StopOnSignal(self._save_after))
        return [DataOrder(self.data_loader, self.cfg.SOLVER.IMS_PER_BATCH), *hooks]

    def _save_after(self, iteration: int) -> None:
        name = f"model_{iteration:07d}"
        if os.path.basename(self.checkpointer.get_checkpoint_file()) != f"{name}.pth":
            self.checkpointer.save(name, iteration=iteration)

    # ---------------------------------------------------------------- running

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint of ``OUTPUT_DIR`` or load ``MODEL.WEIGHTS``.

        Resumed are iteration, weights, optimizer, learning rate, the contrastive weight (which
        follows from the iteration) and the place in the stream of training clips. What
        ``metrics.json`` has beyond the checkpoint is taken out: it is about to come again.
        """
        super().resume_or_load(resume)
        if self.start_iter > 0:
            logger.info("Resuming at iteration %d of %d", self.start_iter, self.max_iter)
        if comm.is_main_process() and resume:
            drop_metrics_from(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)

    def train(self) -> Any:
        results = super().train()
        collect_bad_frames(self.cfg.DATASETS.TRAIN)
        # Ends the loader's workers in order. At exit Python would send them SIGTERM, which they
        # take for a batch system's (StopOnSignal) and sit out.
        self._trainer._data_loader_iter_obj = None
        return results

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        _share_buffers(model)
        # A copy, as training may go on; one way of evaluating, so that the figures at a training's
        # end are those that --eval-only gives.
        model = copy.deepcopy(model.module if isinstance(model, DistributedDataParallel) else model)
        results = super().test(cfg, prepare_for_inference(model, cfg), evaluators)
        collect_bad_frames(cfg.DATASETS.TEST)
        return results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """As Detectron2's; the contrastive weight's ``STEPS`` scale like the iterations.

        Raises:
            ConfigError: the batch can't be shared out evenly.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE {reference}; change one of them"
            )
        steps = cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS
        cfg = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        frozen = cfg.is_frozen()
        cfg.defrost()
        cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS = round(steps * reference / num_workers)
        if frozen:
            cfg.freeze()
        return cfg


def _share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers.

    Batch norm that learns its statistics learns others in each process. Checkpoints hold the main
    process's, and all must evaluate the model that is saved.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


@contextmanager
def _ddp_for_device(device: str) -> Iterator[None]:
    """Make DefaultTrainer wrap models on the CPU as PyTorch wants it: with no device ids."""
    if torch.device(device).type != "cpu":
        yield
        return
    without_ids = functools.partial(create_ddp_model, device_ids=None)
    with mock.patch("detectron2.engine.defaults.create_ddp_model", without_ids):
        yield


def drop_metrics_from(path: str, iteration: int) -> None:
    """Cut the last rows, those from ``iteration`` on, off a ``metrics.json``, in place.

    The file has one JSON object a line; a last line that a killed job left unfinished goes too. It
    stays the same file, as a writer may have it open already.
    """
    if not os.path.isfile(path):
        return
    position = keep = 0
    with open(path, "rb") as file:
        for line in file:
            position += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and row.get("iteration", iteration) < iteration:
                keep = position
    os.truncate(path, keep)
