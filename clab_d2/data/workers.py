"""What each worker process of a data loader does first."""

from __future__ import annotations

import signal

from detectron2.data.build import worker_init_reset_seed


def init_worker(worker_id: int) -> None:
    """Give a worker its own random numbers, and let it outlive a SIGTERM that the job outlives.

    Batch systems send SIGTERM to all processes of a job, whose main process may handle it to end
    its work in order (:class:`clab_d2.engine.hooks.StopOnSignal`) and needs its workers meanwhile.
    PyTorch has replaced that handler, which a worker inherits, by one that exits.
    """
    worker_init_reset_seed(worker_id)
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        signal.signal(signal.SIGTERM, handler)
