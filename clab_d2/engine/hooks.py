"""Hooks: stop on a signal with a checkpoint, and go on with data and evaluations after a stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from clab_d2.data.training_order import ClipOrder
from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.io import atomic_write

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# One Ctrl-C may reach a process twice (terminal and launcher); a later one means "now".
_SAME_REQUEST_S = 2.0
_WORKER_GRACE_S = 10


class FirstLine(HookBase):
    """A line of progress after the first iteration: the next may be minutes away on a CPU."""

    def __init__(self, printer: EventWriter, period: int) -> None:
        """
        Args:
            printer: prints the line.
            period: of the lines that are printed anyway.
        """
        self._printer, self._period = printer, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_first = self.trainer.iter == self.trainer.start_iter
        if is_first and done % self._period and done < self.trainer.max_iter:
            self._printer.write()


class StopOnSignal(HookBase):
    """On SIGINT or SIGTERM: finish the iteration, save a checkpoint, exit with 128 + signal.

    All processes of a job stop after the same iteration, whichever got the signal. A second
    signal, more than two seconds later, stops at once. Belongs behind the scheduler's and the
    checkpointer's hooks, and on every process.
    """

    def __init__(self, save: Callable[[int], None]) -> None:
        """
        Args:
            save: saves a checkpoint of the iteration it is given (the main process calls it).
        """
        self._save = save
        self._signal = 0
        self._received = 0.0
        self._old_handlers: dict[int, Any] = {}
        self._pid = 0

    def before_train(self) -> None:
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._old_handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def after_train(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self._signal and time.monotonic() - self._received > _SAME_REQUEST_S
        if not self._signal:
            self._signal, self._received = number, time.monotonic()
        if os.getpid() != self._pid:
            # A data loader's worker, which inherits the handler. The main process may still need
            # its batch for the last iteration; after that it ends it, or else SIGALRM does.
            if number == signal.SIGTERM:
                signal.alarm(_WORKER_GRACE_S)
            return
        if again:
            raise KeyboardInterrupt

    def after_step(self) -> None:
        number = max(comm.all_gather(self._signal)) if comm.get_world_size() > 1 else self._signal
        if number == 0 or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        if comm.is_main_process():
            self._save(self.trainer.iter)
            logger.warning(
                "Stopped by %s after iteration %d, checkpoint saved; --resume goes on from there",
                signal.Signals(number).name,
                self.trainer.iter,
            )
        comm.synchronize()
        # The launcher ends all processes when one fails; the main one still has logs to close.
        raise SystemExit(128 + number if comm.is_main_process() else 0)


class PeriodicCheckpoint(HookBase):
    """Saves a checkpoint to resume from every few iterations, and after the last."""

    def __init__(self, checkpointer: VIDCheckpointer, period: int) -> None:
        """
        Args:
            checkpointer: saves ``model_<iteration>``.
            period: iterations between two checkpoints.
        """
        self._checkpointer = checkpointer
        self._period = period

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if (iteration + 1) % self._period == 0 or iteration + 1 >= self.trainer.max_iter:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


class FinalModel(HookBase):
    """Writes ``model_final``, the model to use, at a training's end.

    Belongs behind the evaluation, whose metrics come into the file. It is there before, too, so
    that an evaluation that fails costs no model.
    """

    def __init__(
        self,
        checkpointer: VIDCheckpointer,
        model: nn.Module,
        metrics: Callable[[], Mapping[str, Any]],
    ) -> None:
        """
        Args:
            checkpointer: writes the file.
            model: what goes into it.
            metrics: those of the last evaluation of this process, empty if there was none.
        """
        self._checkpointer = checkpointer
        self._model = model
        self._metrics = metrics

    def after_step(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._write({})

    def after_train(self) -> None:
        # Where a training has failed, its iteration is one that it did not finish.
        metrics = self._metrics() if self.trainer.iter >= self.trainer.max_iter else {}
        if metrics:
            self._write(metrics)
        del self._metrics  # likely a method of the trainer, which must not be kept alive

    def _write(self, metrics: Mapping[str, Any]) -> None:
        self._checkpointer.save_model(
            "model_final", self._model, self.trainer.max_iter, metrics
        )


class DataOrder(HookBase):
    """Keeps in checkpoints which clips have been seen, so that a resumed training goes on there.

    Without it a resumed training would see again the clips it began with. A loader that is not
    ours is left alone.
    """

    def __init__(self, loader: Any) -> None:
        """
        Args:
            loader: the training loader; its iteration must not have begun when a checkpoint loads.
        """
        self._order = _clip_order(loader)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._order is None else self._order.state_after(self.trainer.iter + 1)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._order is not None:
            self._order.load_state(state)


class PeriodicEvaluation(EvalHook):
    """Detectron2's, which also makes up for an evaluation that was due when a job ended.

    A checkpoint is saved before the evaluation of the same iteration, which a signal, a time limit
    or a crash may then cut off.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict[str, Any]], noted: str) -> None:
        """
        Args:
            period: iterations between two evaluations; 0 for none but the last.
            evaluate: returns nested metrics.
            noted: a file in which the main process notes the iteration last evaluated.
        """
        super().__init__(period, self._evaluate_and_note)
        self._evaluate = evaluate
        self._noted = Path(noted)

    def _evaluate_and_note(self) -> dict[str, Any]:
        results = self._evaluate()
        if comm.is_main_process():
            with atomic_write(self._noted) as file:
                file.write(str(self.trainer.iter))
        return results

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start == 0:
            if comm.is_main_process():
                self._noted.unlink(missing_ok=True)  # another training's
            return
        is_done = self._noted.is_file() and self._noted.read_text() == str(start - 1)
        if comm.all_gather(is_done)[0]:
            return
        self._set_iteration(start - 1)
        self.after_step()  # evaluates if it was due
        self._set_iteration(start)

    def _set_iteration(self, iteration: int) -> None:
        self.trainer.iter = self.trainer.storage.iter = iteration

    def after_train(self) -> None:
        super().after_train()
        del self._evaluate  # likely a method of the trainer, which must not be kept alive


def _clip_order(loader: Any) -> ClipOrder | None:
    """The sampler of a training loader, which may be wrapped (``dataset``) for a GPU."""
    while loader is not None:
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, ClipOrder):
            return sampler
        loader = getattr(loader, "dataset", None)
    return None
