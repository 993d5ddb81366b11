from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clab_d2.engine import VIDCheckpointer
from clab_d2.engine.checkpointer import Purpose
from clab_d2.errors import ConfigError, DataError


class Detector(nn.Module):
    """The parameter names that the checkpointer knows of, at toy size."""

    def __init__(self, classes: int = 3, width: int = 4, branch: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, width)
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(width, classes + 1)
        self.roi_heads.box_predictor.bbox_pred = nn.Linear(width, 4 * classes)
        if branch:
            self.contrastive_branch = nn.Linear(width, 2)


class Counter:
    """Something with a state, as a trainer has."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def save(folder: Path, model: nn.Module, name: str = "model") -> str:
    VIDCheckpointer(model, str(folder)).save(name)
    return str(folder / f"{name}.pth")


def one_line_error(checkpointer: VIDCheckpointer, path: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        checkpointer.load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    model, other = Detector(), Detector()
    VIDCheckpointer(model, str(tmp_path), counter=Counter(7)).save("model_0000004", iteration=4)
    counter = Counter()
    rest = VIDCheckpointer(other, str(tmp_path), counter=counter).resume_or_load("", resume=True)
    assert rest["iteration"] == 4
    assert counter.value == 7
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_weights_alone_are_loaded_without_resume(tmp_path: Path) -> None:
    path = save(tmp_path, Detector())
    counter = Counter(1)
    other = VIDCheckpointer(Detector(), str(tmp_path / "other"), counter=counter)
    other.resume_or_load(path, resume=True)
    assert counter.value == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Detector()
    checkpointer = VIDCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    pid = os.fork()
    if pid == 0:

        def save_half(data: object, file: object) -> None:
            file.write(b"PK half of a checkpoint")  # type: ignore[attr-defined]
            file.flush()  # type: ignore[attr-defined]
            time.sleep(60)

        monkeypatch.setattr(torch, "save", save_half)
        checkpointer.save("model_0000003", iteration=3)
        os._exit(0)
    while not list(tmp_path.glob("*model_0000003.pth*")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not (tmp_path / "model_0000003.pth").exists()
    assert VIDCheckpointer(Detector(), str(tmp_path)).resume_or_load("")["iteration"] == 1
    checkpointer.save("model_0000003", iteration=3)
    assert not list(tmp_path.glob(".*.tmp")), "the killed job's leftovers are still there"
    assert VIDCheckpointer(Detector(), str(tmp_path)).resume_or_load("")["iteration"] == 3


@pytest.mark.parametrize("purpose", ["train", "inference"])
@pytest.mark.parametrize("in_file", [False, True])
def test_branch_may_be_missing_or_left_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, in_file: bool, purpose: Purpose
) -> None:
    path = save(tmp_path, Detector(branch=in_file))
    VIDCheckpointer(Detector(branch=not in_file), purpose=purpose).load(path, [])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_weights_that_do_not_fill_the_model_are_refused_for_inference(tmp_path: Path) -> None:
    weights = Detector().state_dict()
    for gone, parts in (
        (("bbox_pred",), "lacks 2 of the model's 6 weights (roi_heads.box_predictor.bbox_pred)"),
        (("roi_heads",), "lacks 4 of the model's 6 weights (roi_heads)"),
        (("cls_score.bias", "backbone"), "(backbone, roi_heads.box_predictor.cls_score.bias)"),
    ):
        kept = {key: w for key, w in weights.items() if not any(part in key for part in gone)}
        torch.save(kept, tmp_path / "w.pth")
        for branch in (False, True):  # which is not counted among what is missing
            checkpointer = VIDCheckpointer(Detector(branch=branch), purpose="inference")
            message = one_line_error(checkpointer, str(tmp_path / "w.pth"))
            assert parts.replace("6", "8" if branch else "6") in message
            assert "config" in message


def test_starting_a_training_tells_in_one_line_what_is_random(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {k: w for k, w in Detector(classes=5).state_dict().items() if "bbox_pred" not in k}
    torch.save({**weights, "head.surplus.weight": torch.zeros(1)}, tmp_path / "w.pth")
    caplog.set_level("INFO", logger="clab_d2")
    model = Detector(branch=True)
    VIDCheckpointer(model, purpose="train").load(str(tmp_path / "w.pth"), [])
    assert torch.equal(model.backbone.weight, weights["backbone.weight"])
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "6 of the model's 8 weights do not come from it and start from random" in warning
    assert "values: roi_heads, contrastive_branch (roi_heads.box_predictor.cls_score" in warning
    assert "(6, 4) in the file and (4, 4) in the model (and 1 more)" in warning
    assert "1 weights have no place in this config's model and are left out (head)" in caplog.text


def test_surplus_weights_are_told_at_inference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    surplus = {f"roi_heads.aggregation.{i}.weight": torch.zeros(1) for i in range(3)}
    torch.save({**Detector().state_dict(), **surplus}, tmp_path / "w.pth")
    VIDCheckpointer(Detector()).load(str(tmp_path / "w.pth"))
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "3 weights have no place" in warning
    assert "(roi_heads.aggregation)" in warning


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("purpose", ["train", "inference"])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, purpose: Purpose, value: float
) -> None:
    model = Detector()
    with torch.no_grad():
        model.backbone.weight[1, 1] = value
    path = save(tmp_path, model)
    message = one_line_error(VIDCheckpointer(Detector(), purpose=purpose), path)
    assert "backbone.weight holds NaN or infinity" in message
    with pytest.raises(DataError, match="diverged"):  # nor does a training go on from them
        VIDCheckpointer(Detector(), str(tmp_path), purpose=purpose).resume_or_load("")
    # What the model does not take from the file may be as it is.
    torch.save({**Detector().state_dict(), "surplus": torch.tensor([value])}, path)
    VIDCheckpointer(Detector(), purpose=purpose).load(path)


@pytest.mark.parametrize("in_file", [False, True])
def test_a_training_is_resumed_with_its_own_model_only(tmp_path: Path, in_file: bool) -> None:
    """The optimizer's state is of the parameters that there were."""
    save(tmp_path, Detector(branch=in_file))
    checkpointer = VIDCheckpointer(Detector(branch=not in_file), str(tmp_path), purpose="train")
    with pytest.raises(DataError, match=r"contrastive_branch.*resume with that training's config"):
        checkpointer.resume_or_load("", resume=True)
    # To evaluate it, the branch does not matter.
    other = VIDCheckpointer(Detector(branch=not in_file), str(tmp_path), purpose="inference")
    other.resume_or_load("", resume=True)


def remembering(value: float) -> Detector:
    """A detector whose contrastive loss has a memory, filled with a value."""
    model = Detector()
    model.contrastive_branch = nn.Module()
    model.contrastive_branch.loss = nn.Module()
    model.contrastive_branch.loss.memory = nn.Module()
    model.contrastive_branch.loss.memory.register_buffer("queue", torch.full((3,), value))
    return model


def test_what_the_contrastive_loss_remembers_serves_resuming_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path, remembering(5.0))
    resumed, started = remembering(0.0), remembering(0.0)
    VIDCheckpointer(resumed, str(tmp_path), purpose="train").resume_or_load("", resume=True)
    assert resumed.contrastive_branch.loss.memory.queue.tolist() == [5.0] * 3
    caplog.set_level("INFO", logger="clab_d2")
    VIDCheckpointer(started, str(tmp_path / "new"), purpose="train").resume_or_load(path)
    assert torch.equal(started.backbone.weight, resumed.backbone.weight)
    assert started.contrastive_branch.loss.memory.queue.tolist() == [0.0] * 3
    assert "contrastive_branch" not in caplog.text  # an empty memory is no random weight


def test_a_tensor_under_two_names_may_be_in_the_file_under_one(tmp_path: Path) -> None:
    weights = Detector().state_dict()
    model = Detector()
    model.tied = model.backbone
    torch.save(weights, tmp_path / "w.pth")
    VIDCheckpointer(model).load(str(tmp_path / "w.pth"))
    assert torch.equal(model.tied.weight, weights["backbone.weight"])


def test_batch_counters_are_no_weights(tmp_path: Path) -> None:
    model = Detector()
    model.norm = nn.BatchNorm2d(3)
    weights = {k: w for k, w in model.state_dict().items() if not k.endswith("batches_tracked")}
    torch.save(weights, tmp_path / "w.pth")
    VIDCheckpointer(model).load(str(tmp_path / "w.pth"))


def test_no_path_for_inference() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty"):
        VIDCheckpointer(Detector()).load("")
    assert VIDCheckpointer(Detector(), purpose="train").load("") == {}


def test_weights_of_an_earlier_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under the names that RENAMED knows, also from inside DataParallel, and to resume from."""
    model = Detector()
    model.roi_heads.roi_aggregation = nn.Linear(2, 2)
    names = {n: n.replace("roi_aggregation", "temporal_roi_align") for n in model.state_dict()}
    old = {names[name]: value for name, value in model.state_dict().items()}
    (tmp_path / "last_checkpoint").write_text("w.pth")
    caplog.set_level("INFO", logger="clab_d2")
    for saved in (old, {f"module.{name}": value for name, value in old.items()}):
        for purpose in ("train", "inference"):
            torch.save({"model": saved}, tmp_path / "w.pth")
            other = Detector()
            other.roi_heads.roi_aggregation = nn.Linear(2, 2)
            caplog.clear()
            VIDCheckpointer(other, str(tmp_path), purpose=purpose).resume_or_load("")
            for name, value in model.state_dict().items():
                assert torch.equal(value, other.state_dict()[name])
            [line] = [r.getMessage() for r in caplog.records if r.name.startswith("clab_d2")]
            assert "earlier version: 2 weights got their new names" in line


def test_other_number_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path, Detector(classes=5))
    message = one_line_error(VIDCheckpointer(Detector(classes=3)), path)
    assert "(6, 4)" in message
    assert "(4, 4)" in message
    assert "MODEL.ROI_HEADS.NUM_CLASSES 5" in message
    # Fine-tuning takes the rest over, and says in one line what it leaves.
    model = Detector(classes=3)
    VIDCheckpointer(model, purpose="train").load(path, [])
    assert torch.equal(model.backbone.weight, torch.load(path)["model"]["backbone.weight"])
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "(6, 4)" in warnings[0]


def test_other_architecture(tmp_path: Path) -> None:
    path = save(tmp_path, Detector(width=8))
    message = one_line_error(VIDCheckpointer(Detector(width=4)), path)
    assert "backbone.weight has shape (8, 2) in the file and (4, 2) in the model" in message
    assert "config" in message


def test_resuming_refuses_what_fine_tuning_admits(tmp_path: Path) -> None:
    save(tmp_path, Detector(classes=5))
    checkpointer = VIDCheckpointer(Detector(classes=3), str(tmp_path), purpose="train")
    with pytest.raises(DataError, match="NUM_CLASSES 5"):
        checkpointer.resume_or_load("", resume=True)


def test_nothing_fits(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "w.pth")
    message = one_line_error(VIDCheckpointer(Detector()), str(tmp_path / "w.pth"))
    assert "layer1.0.conv1.weight" in message
    assert "convert_checkpoint.py" in message


def test_mmtracking_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"detector.x": torch.zeros(1)}, "meta": {}}, tmp_path / "w.pth")
    assert "convert" in one_line_error(VIDCheckpointer(Detector()), str(tmp_path / "w.pth"))


def test_missing_file_and_another_try(tmp_path: Path) -> None:
    checkpointer = VIDCheckpointer(Detector())
    assert "there is no such file" in one_line_error(checkpointer, str(tmp_path / "none.pth"))
    assert "is no file" in one_line_error(checkpointer, str(tmp_path))
    checkpointer.load(save(tmp_path, Detector()))


def test_last_checkpoint_names_a_missing_file(tmp_path: Path) -> None:
    save(tmp_path, Detector())
    (tmp_path / "model.pth").unlink()
    with pytest.raises(DataError, match=r"last_checkpoint names model\.pth"):
        VIDCheckpointer(Detector(), str(tmp_path)).resume_or_load("", resume=True)


class _Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.putenv, ("CLAB_D2_TEST_HARM", "1"))


@pytest.mark.parametrize("extension", ["pth", "pkl"])
def test_code_in_a_file_is_not_run(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"w.{extension}"
    content = {"model": {"backbone.weight": torch.zeros(4, 2)}, "extra": _Harmful()}
    if extension == "pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert "run code" in one_line_error(VIDCheckpointer(Detector()), str(path))


def test_trusted_file_is_read(tmp_path: Path) -> None:
    content = {"model": Detector().state_dict(), "extra": Path("a")}
    torch.save(content, tmp_path / "w.pth")
    rest = VIDCheckpointer(Detector(), trusted=True).load(str(tmp_path / "w.pth"))
    assert rest["extra"] == Path("a")


def test_pickle_of_detectron2s_zoo(tmp_path: Path) -> None:
    """Arrays under shortened names, matched by their endings."""
    weights = {"weight": np.full((4, 2), 3.0, np.float32), "bias": np.ones(4, np.float32)}
    zoo = {"model": {f"backbone.{k}": v for k, v in weights.items()}, "__author__": "test"}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({**zoo, "matching_heuristics": True}))
    model = Detector()
    VIDCheckpointer(model, purpose="train").load(str(tmp_path / "w.pkl"))
    assert torch.equal(model.backbone.weight, torch.full((4, 2), 3.0))
