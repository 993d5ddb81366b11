from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils.events import EventWriter, get_event_storage
from made_datasets import MakeDataset

from clab_d2.data import build_vid_test_loader
from clab_d2.data.dataset_mapper import VIDDatasetMapper
from clab_d2.data.workers import init_worker
from clab_d2.engine.hooks import FirstLine, StopOnSignal
from clab_d2.engine.trainer import drop_metrics_from


class CountingTrainer(TrainerBase):
    """Does nothing, and may get a signal meanwhile."""

    def __init__(self, signal_at: dict[int, int]) -> None:
        super().__init__()
        self.signal_at = signal_at

    def run_step(self) -> None:
        if self.iter in self.signal_at:
            os.kill(os.getpid(), self.signal_at[self.iter])


class Recorder(HookBase):
    def __init__(self) -> None:
        self.iterations: list[int] = []
        self.ended = False

    def after_step(self) -> None:
        self.iterations.append(self.trainer.iter)

    def after_train(self) -> None:
        self.ended = True


class NotingWriter(EventWriter):
    def __init__(self) -> None:
        self.iterations: list[int] = []

    def write(self) -> None:
        self.iterations.append(get_event_storage().iter)


@pytest.mark.parametrize(("start", "end", "period", "lines"), [
    (0, 9, 5, [0]), (3, 9, 5, [3]), (4, 9, 5, []), (0, 9, 1, []), (0, 1, 5, []),
])  # fmt: skip
def test_a_line_after_the_first_iteration(
    start: int, end: int, period: int, lines: list[int]
) -> None:
    trainer, writer = CountingTrainer({}), NotingWriter()
    trainer.register_hooks([FirstLine(writer, period)])
    trainer.train(start, end)
    assert writer.iterations == lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_iteration_and_saves(number: int) -> None:
    saved: list[int] = []
    trainer, recorder = CountingTrainer({2: number}), Recorder()
    trainer.register_hooks([recorder, StopOnSignal(saved.append)])
    old = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        trainer.train(0, 10)
    assert caught.value.code == 128 + number
    assert recorder.iterations == [0, 1, 2]
    assert recorder.ended, "writers and other hooks must be closed"
    assert saved == [2]
    assert signal.getsignal(number) is old


def test_signal_in_the_last_iteration_lets_training_end() -> None:
    saved: list[int] = []
    trainer = CountingTrainer({4: signal.SIGTERM})
    trainer.register_hooks([StopOnSignal(saved.append)])
    trainer.train(0, 5)
    assert saved == []


def test_later_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clab_d2.engine.hooks._SAME_REQUEST_S", -1.0)

    class Impatient(CountingTrainer):
        def run_step(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer = Impatient({})
    trainer.register_hooks([StopOnSignal(lambda iteration: None)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train(0, 5)


class SignalledDataset(torch.utils.data.Dataset):
    """Its worker process gets the signals that a terminal or a batch system sends to all."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return index


def test_data_workers_survive_the_signal() -> None:
    hook = StopOnSignal(lambda iteration: None)
    loader = torch.utils.data.DataLoader(
        SignalledDataset(), batch_size=None, num_workers=1, worker_init_fn=init_worker
    )
    hook.before_train()
    try:
        clips = list(loader)
    finally:
        hook.after_train()
    assert clips == [0, 1, 2, 3]


def test_workers_of_an_evaluation_survive_the_signal(
    make_dataset: MakeDataset, make_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation during training comes to its end; then the training stops."""
    whole = VIDDatasetMapper.__call__

    def signalled(mapper: VIDDatasetMapper, record: dict[str, Any]) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(mapper, record)

    monkeypatch.setattr(VIDDatasetMapper, "__call__", signalled)
    dataset = make_dataset((4,))
    loader = build_vid_test_loader(make_cfg(dataset, **{"DATALOADER.NUM_WORKERS": 1}), dataset.name)
    hook = StopOnSignal(lambda iteration: None)
    hook.before_train()
    try:
        frames = [clip["frame_id"] for batch in loader for clip in batch]
    finally:
        hook.after_train()
    assert frames == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "iteration", "kept"),
    [
        (['{"iteration": 0}\n', '{"iteration": 1}\n', '{"iteration": 2}\n'], 2, 2),
        (['{"iteration": 0}\n', '{"iteration": 1}\n', '{"itera'], 5, 2),
        (['{"iteration": 0}\n', '{"iteration": 1}\n'], 0, 0),
        (['{"iteration": 0}\n', '{"iteration": 9}\n', '{"iteration": 0}\n', '{"iteration": 1}\n'],
         1, 3),
        (['{"iteration": 0}\n', '{"iteration": 3}'], 5, 1),
        ([], 3, 0),
    ],
)  # fmt: skip
def test_metrics_after_the_checkpoint_are_dropped(
    tmp_path: Path, rows: list[str], iteration: int, kept: int
) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("".join(rows))
    with open(path, "a") as writer:  # as the JSON writer has it open meanwhile
        drop_metrics_from(str(path), iteration)
        writer.write("new\n")
    assert path.read_text() == "".join(rows[:kept]) + "new\n"


def test_metrics_that_are_not_there(tmp_path: Path) -> None:
    drop_metrics_from(str(tmp_path / "metrics.json"), 3)
