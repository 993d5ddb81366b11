"""The trainer: Detectron2's, with clips for data, VID metrics and safe checkpoints."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clab_d2.checkpoint.model_file import CARD_KEY, ModelCard, read_card
from clab_d2.checkpoint.portable_config import config_from_plain, config_to_plain
from clab_d2.data import (
    build_vid_test_loader,
    build_vid_train_loader,
    check_files,
    collect_bad_frames,
)
from clab_d2.data.catalog import class_names, numbered_classes
from clab_d2.engine.checkpointer import Purpose, VIDCheckpointer
from clab_d2.engine.hooks import (
    DataOrder,
    FinalModel,
    FirstLine,
    PeriodicCheckpoint,
    PeriodicEvaluation,
    StopOnSignal,
)
from clab_d2.engine.optimizer import build_optimizer
from clab_d2.engine.schedule import Schedule, scale_schedule
from clab_d2.engine.service_writers import ServiceWriter, build_service_writers
from clab_d2.engine.size_check import finest_stride
from clab_d2.engine.test_time_augmentation import with_test_time_augmentation
from clab_d2.engine.weight_average import WeightAverage
from clab_d2.errors import DataError, DivergenceError
from clab_d2.evaluation import VIDEvaluator
from clab_d2.evaluation.pictures import DetectionPictures, number_to_draw
from clab_d2.modeling import prepare_for_inference
from clab_d2.modeling.optimize import to_channels_last
from clab_d2.postprocessing import PostProcessResults, build_postprocessing

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
        # Not DefaultTrainer's constructor, whose parts can't be chosen: here the model comes first
        # and says what its loader must give, and processes on the CPU get no device ids.
        TrainerBase.__init__(self)
        self._schedule = Schedule.of(cfg, comm.get_world_size())
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._resumes = False
        self._num_pictures = number_to_draw(cfg.LOG.PICTURES)
        self._services: list[ServiceWriter] = []

        # The model first: it takes seconds, and knows of contradictions in the config.
        model = self.build_model(cfg)
        if cfg.SOLVER.CHANNELS_LAST:
            to_channels_last(model)
        self.check_test_data(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg, model)
        trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(_distributed(model, cfg.MODEL.DEVICE), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(
            cfg, self.model, purpose="train", trainer=weakref.proxy(self)
        )
        _tell_if_not_enough(self.checkpointer.card)
        decay = cfg.SOLVER.EMA_DECAY
        self._average = WeightAverage(_bare(self.model), decay) if decay else None
        self.register_hooks(self.build_hooks())

    # ---------------------------------------------------------------- parts

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, model: nn.Module) -> Any:
        """The endless stream of this process's batches for ``model``."""
        return build_vid_train_loader(
            cfg,
            needs_references=model.needs_references,
            needs_reference_truth=model.needs_reference_truth,
            finest_stride=finest_stride(cfg, model),
        )

    @classmethod
    def check_test_data(cls, cfg: CfgNode) -> None:
        """Look at what :meth:`build_test_loader` is going to need; override them together."""
        check_files(cfg.DATASETS.TEST)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str, model: nn.Module) -> Any:
        """This process's share of a dataset's frames, for ``model``."""
        return build_vid_test_loader(cfg, dataset_name, needs_references=model.needs_references)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        method = build_postprocessing(cfg)
        return VIDEvaluator(
            dataset_name,
            output_dir=output_dir,
            postprocess=None if method is None else PostProcessResults(method),
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_checkpointer(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        *,
        purpose: Purpose = "inference",
        **checkpointables: Any,
    ) -> VIDCheckpointer:
        """The checkpointer of ``OUTPUT_DIR``, to train or to use the model."""
        names = class_names(cfg)
        return VIDCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            purpose=purpose,
            trusted=cfg.MODEL.TRUST_WEIGHTS,
            class_names=names,
            card=ModelCard(config_to_plain(cfg), names or numbered_classes(cfg)),
            **checkpointables,
        )

    def build_hooks(self) -> list[HookBase]:
        """The hooks, in the order in which they do their part of an iteration.

        Learning rate and checkpoint come before the stop on a signal, so that what is saved then
        is the state after the iteration; the evaluation, which may take long, comes behind it.
        The writers, which :meth:`train` adds, are last, so that they have its results.
        """
        cfg = self.cfg
        built: list[HookBase] = [
            DataOrder(self.data_loader),
            hooks.IterationTimer(),
            hooks.LRScheduler(),
        ]
        if self._average is not None:
            built.append(self._average)
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            built.append(self._build_precise_bn())
        if comm.is_main_process():
            period = cfg.SOLVER.CHECKPOINT_PERIOD
            built.append(PeriodicCheckpoint(self.checkpointer, period))
        built.append(StopOnSignal(self._save_after))
        noted = os.path.join(cfg.OUTPUT_DIR, "last_evaluation")
        built.append(PeriodicEvaluation(cfg.TEST.EVAL_PERIOD, self._evaluate, noted))
        if comm.is_main_process():
            built.append(FinalModel(self.checkpointer, self._model_to_use, self._metrics))
        return built

    def build_writers(self) -> list[EventWriter]:
        """What writes down losses and metrics; called when it is known where training begins."""
        output_dir = self.cfg.OUTPUT_DIR
        os.makedirs(output_dir, exist_ok=True)
        # A resumed training takes out of its logs what lies beyond the checkpoint.
        purge_step = self.start_iter if self._resumes else None
        self._services = build_service_writers(self.cfg, resumes=self.start_iter > 0)
        return [
            *self._services,
            CommonMetricPrinter(self.max_iter),
            JSONWriter(os.path.join(output_dir, "metrics.json")),
            TensorboardXWriter(output_dir, purge_step=purge_step),
        ]

    def _build_precise_bn(self) -> HookBase:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg, _bare(self.model))
        num_iter = cfg.TEST.PRECISE_BN.NUM_ITER
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self._model_to_use, loader, num_iter)

    @property
    def _model_to_use(self) -> nn.Module:
        """What is evaluated, and the final model."""
        return _bare(self.model) if self._average is None else self._average.model

    def _evaluate(self) -> dict[str, Any]:
        evaluators = [self._build_evaluator_with_pictures(n) for n in self.cfg.DATASETS.TEST]
        self._last_eval_results = self.test(self.cfg, self._model_to_use, evaluators)
        return self._last_eval_results

    def _build_evaluator_with_pictures(self, dataset_name: str) -> DatasetEvaluator:
        evaluator = self.build_evaluator(self.cfg, dataset_name)
        if not self._num_pictures:
            return evaluator
        sinks = [service.log_picture for service in self._services]
        pictures = DetectionPictures(dataset_name, self._num_pictures, sinks)
        return DatasetEvaluators([evaluator, pictures])

    def _metrics(self) -> dict[str, Any]:
        return getattr(self, "_last_eval_results", None) or {}

    def _save_after(self, iteration: int) -> None:
        name = f"model_{iteration:07d}"
        if os.path.basename(self.checkpointer.get_checkpoint_file()) != f"{name}.pth":
            self.checkpointer.save(name, iteration=iteration)

    # ---------------------------------------------------------------- running

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint of ``OUTPUT_DIR`` or load ``MODEL.WEIGHTS``.

        Resumed are iteration, weights, optimizer, learning rate, the contrastive weight (which
        follows from the iteration) and the place in the stream of training clips. What
        ``metrics.json`` and TensorBoard have beyond the checkpoint is taken out: it is about to
        come again. An evaluation that was due then and cut off is made up for.

        Raises:
            ConfigError: the checkpoint's schedule is another one (:class:`Schedule`).
        """
        super().resume_or_load(resume)
        self._resumes = resume
        if self.start_iter > 0:
            done = self.start_iter >= self.max_iter
            logger.info(
                "Resuming at iteration %d of %d%s", self.start_iter, self.max_iter,
                ": the training is finished, and is evaluated again" if done else "",
            )  # fmt: skip
        if comm.is_main_process() and resume:
            drop_metrics_from(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        checkpoint = self.checkpointer.get_checkpoint_file()
        if "schedule" in state_dict:
            self._schedule.check_resumes(state_dict["schedule"], checkpoint)
        else:
            logger.warning(
                "%s: of version 0.1, which did not note the number of processes; go on only with "
                "as many as before (--num-gpus), or two schedules are mixed", checkpoint,
            )
        super().load_state_dict(state_dict)

    def train(self) -> Any:
        if comm.is_main_process():
            writers, period = self.build_writers(), self.cfg.SOLVER.LOG_PERIOD
            printers = [writer for writer in writers if isinstance(writer, CommonMetricPrinter)]
            self.register_hooks([FirstLine(printer, period) for printer in printers])
            self.register_hooks([hooks.PeriodicWriter(writers, period)])
        try:
            results = super().train()
        finally:
            # Ends the loader's workers in order. At exit Python would send them SIGTERM, which
            # they take for a batch system's (StopOnSignal) and sit out.
            self._trainer.reset_data_loader(lambda: ())
        collect_bad_frames(self.cfg.DATASETS.TRAIN)
        return results

    def run_step(self) -> None:
        try:
            super().run_step()
        except FloatingPointError as error:  # of the losses, or of the RPN's boxes
            raise DivergenceError(self._divergence(error)) from error

    def _divergence(self, error: FloatingPointError) -> str:
        losses = re.findall(r"'([^']+)': (?:[\w.]+\()?-?(?:nan|inf)", str(error))
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"the training diverged at iteration {self.iter}, at a learning rate of {rate:g}: "
            f"{', '.join(losses) or 'a box or score'} is infinite or not a number; start anew "
            f"with a lower SOLVER.BASE_LR (it is {self.cfg.SOLVER.BASE_LR:g}), more "
            "SOLVER.WARMUP_ITERS, or SOLVER.CLIP_GRADIENTS.ENABLED True"
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluate a model on every dataset of ``DATASETS.TEST``.

        Args:
            cfg: the config.
            model: with the weights to evaluate; it stays as it is.
            evaluators: one for each dataset; by default those of :meth:`build_evaluator`.

        Returns:
            On the main process the metrics of the one dataset, or of several ones by their names;
            they are printed, too.
        """
        names = list(cfg.DATASETS.TEST)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(f"{len(evaluators)} evaluators for {len(names)} datasets")
        _share_buffers(model)
        # A copy, as training may go on; one way of evaluating, so that the figures at a training's
        # end are those that --eval-only gives.
        model = prepare_for_inference(copy.deepcopy(_bare(model)), cfg)
        model = with_test_time_augmentation(model, cfg)
        results: dict[str, Any] = {}
        for number, name in enumerate(names):
            loader = cls.build_test_loader(cfg, name, model)
            evaluator = evaluators[number] if evaluators else cls.build_evaluator(cfg, name)
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        collect_bad_frames(names)
        return results[names[0]] if len(names) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Fit the schedule to so many processes, see :func:`scale_schedule`."""
        return scale_schedule(cfg, num_workers)


def _tell_if_not_enough(card: ModelCard | None) -> None:
    """Say before a training that its file won't be enough to detect, rather than to its user."""
    if card is None:
        return
    try:
        read_card({CARD_KEY: card.to_plain()}, "model_final.pth")
        config_from_plain(card.config, "model_final.pth")
    except DataError as error:
        logger.warning("%s: as it is, the file is going to need --config-file to be used", error)


def _share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers.

    Batch norm that learns its statistics learns others in each process. Checkpoints hold the main
    process's, and all must evaluate the model that is saved.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _distributed(model: nn.Module, device: str) -> nn.Module:
    """The model as one of several processes trains it; as it is where there is but one."""
    options: dict[str, Any] = {"broadcast_buffers": False}
    if torch.device(device).type == "cpu":
        options["device_ids"] = None  # PyTorch refuses any for a model on the CPU
    return create_ddp_model(model, **options)


def _bare(model: nn.Module) -> nn.Module:
    """The model without what several processes wrap round it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


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
