"""The trainer around a model that only notes which clips it is given."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.env import seed_all_rng
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_videos import make_tiny_videos
from torch import nn

from clab_d2 import get_clab_cfg
from clab_d2.data import register_datasets_from_config
from clab_d2.engine import Trainer
from clab_d2.errors import ConfigError, DataError
from clab_d2.evaluation import VIDEvaluator

SEEN: list[str] = []


@META_ARCH_REGISTRY.register()
class NotingModel(nn.Module):
    """Its loss falls with its one weight; ``SEEN`` gets the clips' key frames."""

    needs_references = needs_reference_truth = False

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, clips: list[dict[str, object]]) -> dict[str, torch.Tensor]:
        SEEN.extend(str(clip["file_name"]) for clip in clips)
        return {"loss_cls": self.weight.square().sum()}


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_clab_cfg()
    cfg.merge_from_list(make_tiny_videos(tmp_path).options)
    cfg.DATASETS.TEST = ()
    cfg.MODEL.META_ARCHITECTURE = "NotingModel"
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 12
    cfg.SOLVER.STEPS = (8,)
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.SOLVER.CHECKPOINT_PERIOD = 5
    cfg.SOLVER.LOG_PERIOD = 1
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    register_datasets_from_config(cfg)
    return cfg


def train(cfg: CfgNode, resume: bool = False, stop_before: int | None = None) -> list[str]:
    """Train; return the key frames seen. ``stop_before``: die there, as if killed."""
    SEEN.clear()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    if stop_before is not None:
        whole_step = trainer.run_step

        def run_step() -> None:
            if trainer.iter == stop_before:
                raise KeyboardInterrupt
            whole_step()

        trainer.run_step = run_step
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return list(SEEN)


def rows(cfg: CfgNode) -> list[dict[str, float]]:
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_resumed_training_goes_on_with_the_data(cfg: CfgNode, tmp_path: Path) -> None:
    """With another random state, as of another day, and no SEED."""
    seed_all_rng(1)
    whole = train(cfg)
    whole_rows = rows(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "resumed")
    seed_all_rng(1)
    first = train(cfg, stop_before=7)
    assert first == whole[:14]
    seed_all_rng(2)
    rest = train(cfg, resume=True)
    assert rest == whole[10:], "the last checkpoint is that of iteration 4"
    keys = ("iteration", "lr", "total_loss")
    resumed_rows = rows(cfg)
    assert [[r[k] for k in keys[:2]] for r in resumed_rows] == [
        [r[k] for k in keys[:2]] for r in whole_rows
    ]
    assert resumed_rows[-1]["iteration"] == 11
    torch.testing.assert_close(
        torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth")["model"]["weight"],
        torch.load(f"{tmp_path}/out/model_final.pth")["model"]["weight"],
    )


@pytest.mark.parametrize(
    ("sampler", "workers", "grouped"),
    [
        ("TrainingSampler", 1, True),
        ("TrainingSampler", 2, True),
        ("TrainingSampler", 3, True),
        ("TrainingSampler", 2, False),
        ("RandomSubsetTrainingSampler", 2, True),
        ("RepeatFactorTrainingSampler", 3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_resumed_with_data_workers(
    cfg: CfgNode, tmp_path: Path, sampler: str, workers: int, grouped: bool
) -> None:
    """No clip repeats and none is skipped, also if the number of workers changes."""
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouped
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    seed_all_rng(1)
    whole = train(cfg)
    if sampler == "RandomSubsetTrainingSampler":
        assert len(set(whole)) == 4
    cfg.OUTPUT_DIR = str(tmp_path / "resumed")
    seed_all_rng(1)
    assert train(cfg, stop_before=7) == whole[:14]
    seed_all_rng(2)
    assert train(cfg, resume=True) == whole[10:]
    cfg.DATALOADER.NUM_WORKERS = 0
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000009.pth")
    assert train(cfg, resume=True) == whole[20:]


def test_tensorboard_forgets_what_comes_again(cfg: CfgNode) -> None:
    train(cfg, stop_before=7)
    train(cfg, resume=True)
    events = EventAccumulator(cfg.OUTPUT_DIR)
    events.Reload()
    for tag in ("total_loss", "lr"):
        assert [event.step for event in events.Scalars(tag)] == list(range(12)), tag


@pytest.mark.parametrize("scaled", [(1, 2), (2, 1), (2, 0), (0, 2)])
def test_two_schedules_are_not_mixed(cfg: CfgNode, scaled: tuple[int, int]) -> None:
    """Here one process, whose reference changes; another number of processes is the same to it."""
    cfg.SOLVER.REFERENCE_WORLD_SIZE = scaled[0]
    train(cfg, stop_before=11)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = scaled[1]
    with pytest.raises(ConfigError, match=r"model_0000009\.pth: trained with . clip") as caught:
        train(cfg, resume=True)
    assert not SEEN
    remedy = "2" if scaled[0] == 2 else "0 SOLVER.IMS_PER_BATCH 2"
    assert f"SOLVER.REFERENCE_WORLD_SIZE {remedy}, or" in str(caught.value)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = scaled[0]
    train(cfg, resume=True)


def test_another_batch_is_refused(cfg: CfgNode) -> None:
    train(cfg, stop_before=7)
    cfg.SOLVER.IMS_PER_BATCH = 4
    with pytest.raises(ConfigError, match=r"set SOLVER\.IMS_PER_BATCH 2"):
        train(cfg, resume=True)


class Evaluating(Trainer):
    """Notes after which iteration it evaluates; ``ended`` there, as if killed."""

    evaluated: ClassVar[list[int]] = []
    ended = -1

    def _evaluate(self) -> dict[str, Any]:
        if self.iter == self.ended:
            raise KeyboardInterrupt
        self.evaluated.append(self.iter)
        return {"vid": {"AP50": 10.0 * self.iter}}


@pytest.mark.parametrize("end", ["signal", "in the evaluation", "after it"])
def test_an_evaluation_cut_off_is_made_up_for(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    cfg.TEST.EVAL_PERIOD = 5
    monkeypatch.setattr(Evaluating, "evaluated", [])
    trainer = Evaluating(cfg)
    trainer.resume_or_load(False)
    whole_step = trainer.run_step

    def run_step() -> None:
        whole_step()
        if trainer.iter == 4 and end == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if trainer.iter == 6 and end == "after it":
            raise KeyboardInterrupt

    trainer.run_step = run_step
    trainer.ended = 4 if end == "in the evaluation" else -1
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.train()
    assert Evaluating.evaluated == ([4] if end == "after it" else [])
    trainer = Evaluating(cfg)
    trainer.resume_or_load(True)
    trainer.train()
    assert Evaluating.evaluated == [4, 9, 12], "each once"
    found = {row["iteration"]: row["vid/AP50"] for row in rows(cfg) if "vid/AP50" in row}
    assert found == {4: 40, 9: 90, 12: 120}
    # A new training in the same folder does not take over what was noted.
    Evaluating(cfg).train()
    assert Evaluating.evaluated == [4, 9, 12, 4, 9, 12]


def test_what_the_evaluation_needs_is_missed_before_the_first_iteration(
    cfg: CfgNode, tmp_path: Path
) -> None:
    videos = make_tiny_videos(tmp_path / "val")
    cfg.DATASETS.VID = [
        *cfg.DATASETS.VID, ["tiny_val", str(videos.json_file), str(videos.image_root)]
    ]  # fmt: skip
    cfg.DATASETS.TEST = ("tiny_val",)
    register_datasets_from_config(cfg)
    whole = videos.json_file.read_text()
    SEEN.clear()
    moved = videos.image_root.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=rf"{videos.image_root}: none of 3 frame\(s\) looked for"):
        Trainer(cfg)
    moved.rename(videos.image_root)
    videos.json_file.write_text(whole[:-100])
    with pytest.raises(DataError, match=r"tiny.json: not a whole JSON file"):
        Trainer(cfg)
    videos.json_file.unlink()
    with pytest.raises(DataError, match=r"tiny.json: no such annotation file"):
        Trainer(cfg)
    assert not SEEN and not Path(cfg.OUTPUT_DIR).exists(), "nothing was trained or written"
    videos.json_file.write_text(whole)
    Trainer(cfg)


class Averaging(Trainer):
    """Notes the weight that is evaluated."""

    evaluated: ClassVar[list[float]] = []

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        cls.evaluated.append(model.weight[0].item())
        return {"vid": {"AP50": 1.0}}


def weights_in(path: Path) -> torch.Tensor:
    return torch.load(path)["model"]["weight"]


@pytest.mark.parametrize("resumed", [False, True])
def test_the_average_of_weights_is_evaluated_and_kept(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    cfg.SOLVER.EMA_DECAY = 0.75
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    cfg.SOLVER.BASE_LR = 0.05
    monkeypatch.setattr(Averaging, "evaluated", [])
    if resumed:
        train(cfg, stop_before=7)
    trainer = Averaging(cfg)
    trainer.resume_or_load(resumed)
    trainer.train()

    folder = Path(cfg.OUTPUT_DIR)
    trained = [weights_in(folder / f"model_{number:07d}.pth") for number in range(12)]
    average = trained[0]
    for weight in trained[1:]:
        average = 0.75 * average + 0.25 * weight
    assert (average - trained[-1]).abs().max() > 0.01
    torch.testing.assert_close(weights_in(folder / "model_final.pth"), average)
    assert Averaging.evaluated == [pytest.approx(average[0].item())]

    # What is not a training that goes on begins with the average of a checkpoint.
    for purpose in ("inference", "train"):
        model = Trainer.build_model(cfg)
        checkpointer = Trainer.build_checkpointer(cfg, model, purpose=purpose)
        checkpointer.load(str(folder / "model_0000011.pth"), checkpointables=[])
        torch.testing.assert_close(model.weight.data, average)


def test_a_training_without_an_average_goes_on_with_one(cfg: CfgNode) -> None:
    train(cfg, stop_before=7)
    cfg.SOLVER.EMA_DECAY = 0.75
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    train(cfg, resume=True)
    folder = Path(cfg.OUTPUT_DIR)
    average = weights_in(folder / "model_0000005.pth")
    for number in range(6, 12):
        average = 0.75 * average + 0.25 * weights_in(folder / f"model_{number:07d}.pth")
    torch.testing.assert_close(weights_in(folder / "model_final.pth"), average)


def test_log_period(cfg: CfgNode) -> None:
    cfg.SOLVER.LOG_PERIOD = 5
    cfg.SOLVER.MAX_ITER = 10
    train(cfg)
    assert [row["iteration"] for row in rows(cfg)] == [4, 9]


def test_trainer_trains_by_the_scaled_schedule(cfg: CfgNode) -> None:
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS = 6
    trainer = Trainer(cfg)
    assert trainer.cfg.SOLVER.IMS_PER_BATCH == 1
    assert trainer.max_iter == 24
    assert trainer.cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS == 12


def test_loaders_are_built_for_the_model(cfg: CfgNode) -> None:
    """So that the model can say what it needs (reference frames)."""
    given: list[nn.Module] = []

    class Noting(Trainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode, model: nn.Module) -> Any:
            given.append(model)
            return super().build_train_loader(cfg, model)

    trainer = Noting(cfg)
    assert given == [trainer.model]
    assert isinstance(trainer.model, NotingModel)


def test_a_checkpoint_that_does_not_say_its_schedule_is_warned_of(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of version 0.1: whether the number of processes is theirs can't be known."""
    trainer = Trainer(cfg)
    state = {key: value for key, value in trainer.state_dict().items() if key != "schedule"}
    trainer.load_state_dict(state)
    assert "did not note the number of processes" in caplog.text
    caplog.clear()
    trainer.load_state_dict(trainer.state_dict())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_file_that_will_not_be_enough_is_told_of_before(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        caplog.clear()
        Trainer(cfg)
        return [line for line in caplog.messages if "model_final" in line]

    assert warnings() == []
    cfg.INPUT.MIN_SIZE_TEST = 10_000
    [line] = warnings()
    assert "INPUT.MIN_SIZE_TEST is 10000, which is out of range" in line
    assert "going to need --config-file" in line


@META_ARCH_REGISTRY.register()
class NotingConv(NotingModel):
    """The same with a conv for a backbone."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        self.backbone = nn.Conv2d(3, 4, 3)


@pytest.mark.parametrize("wanted", [False, True])
def test_channels_last_in_training(cfg: CfgNode, wanted: bool) -> None:
    cfg.MODEL.META_ARCHITECTURE = "NotingConv"
    cfg.SOLVER.CHANNELS_LAST = wanted
    weight = Trainer(cfg).model.backbone.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == wanted


def test_without_what_draws_a_training_goes_without_pictures(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """supervision comes with an extra: its absence must not end a training at its evaluation."""
    monkeypatch.setitem(sys.modules, "supervision", None)
    trainer = Trainer(cfg)
    assert 'pip install "clab_d2[video]"' in caplog.text and "LOG.PICTURES" in caplog.text
    (name,) = cfg.DATASETS.TRAIN
    assert isinstance(trainer._build_evaluator_with_pictures(name), VIDEvaluator)
    caplog.clear()
    cfg.LOG.PICTURES = 0
    Trainer(cfg)
    assert "LOG.PICTURES" not in caplog.text
