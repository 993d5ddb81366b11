"""Hooks: stop on a signal with a checkpoint, and go on with the data where a training stopped."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from detectron2.data.common import ToIterableDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# One Ctrl-C may reach a process twice (terminal and launcher); a later one means "now".
_SAME_REQUEST_S = 2.0
_WORKER_GRACE_S = 10


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


class TrainingStream(TrainingSampler):
    """Detectron2's endless shuffle, begun after its first ``start`` clips."""

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None, start: int = 0):
        super().__init__(size, shuffle, seed)
        self.start = start

    def __iter__(self) -> Iterator[int]:
        if torch.utils.data.get_worker_info() is not None:
            # Detectron2 runs the sampler in each worker, where PyTorch has replaced the handler of
            # SIGTERM by one that exits. Batch systems send SIGTERM to all processes of a job: the
            # main process then still needs its workers to end the iteration (StopOnSignal).
            handler = signal.getsignal(signal.SIGTERM)
            if callable(handler):
                signal.signal(signal.SIGTERM, handler)
        # Counting past a million clips takes a fraction of a second.
        first = self.start + self._rank
        yield from itertools.islice(self._infinite_indices(), first, None, self._world_size)


class DataOrder(HookBase):
    """Keeps the shuffle's seed in checkpoints, and continues the shuffle where they were saved.

    Without it a resumed training would see again the clips it began with. Loaders that do not
    shuffle by Detectron2's :class:`TrainingSampler` are left alone.
    """

    def __init__(self, loader: Any, clips_per_iteration: int) -> None:
        """
        Args:
            loader: the training loader; its iteration must not have begun when a checkpoint loads.
            clips_per_iteration: over all processes.
        """
        self._holder = _sampler_holder(loader)
        self._start(0)
        self._clips_per_iteration = clips_per_iteration

    def state_dict(self) -> dict[str, int]:
        if self._holder is None:
            return {}
        return {
            "seed": self._holder.sampler._seed,
            "clips_seen": (self.trainer.iter + 1) * self._clips_per_iteration,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start(state["clips_seen"], state["seed"])

    def _start(self, clip: int, seed: int | None = None) -> None:
        if self._holder is None:
            return
        sampler = self._holder.sampler
        self._holder.sampler = TrainingStream(
            sampler._size,
            sampler._shuffle,
            seed=sampler._seed if seed is None else seed,
            start=clip,
        )


def _sampler_holder(loader: Any) -> ToIterableDataset | None:
    """The innermost of Detectron2's layers round the dataset, which holds the sampler.

    Layers (batching, grouping by aspect ratio) name what they wrap ``dataset``.
    """
    layer = loader
    for _ in range(4):
        if isinstance(layer, ToIterableDataset):
            return layer if isinstance(layer.sampler, TrainingSampler) else None
        layer = getattr(layer, "dataset", None)
    return None
