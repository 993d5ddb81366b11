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
from clab_d2.errors import DataError


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


@pytest.mark.parametrize("fine_tune", [False, True])
@pytest.mark.parametrize("in_file", [False, True])
def test_branch_may_be_missing_or_left_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, in_file: bool, fine_tune: bool
) -> None:
    path = save(tmp_path, Detector(branch=in_file))
    VIDCheckpointer(Detector(branch=not in_file), fine_tune=fine_tune).load(path, [])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_other_missing_keys_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Detector()
    weights = {key: w for key, w in model.state_dict().items() if "bbox_pred" not in key}
    torch.save({**weights, "surplus.weight": torch.zeros(1)}, tmp_path / "w.pth")
    VIDCheckpointer(Detector()).load(str(tmp_path / "w.pth"))
    assert "bbox_pred" in caplog.text
    assert "surplus" in caplog.text


def test_resuming_without_the_branch_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, Detector(branch=False))
    VIDCheckpointer(Detector(branch=True), str(tmp_path)).resume_or_load("", resume=True)
    assert "contrastive_branch" in caplog.text


def test_other_number_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path, Detector(classes=5))
    message = one_line_error(VIDCheckpointer(Detector(classes=3)), path)
    assert "(6, 4)" in message
    assert "(4, 4)" in message
    assert "MODEL.ROI_HEADS.NUM_CLASSES 5" in message
    # Fine-tuning takes the rest over, and says in one line what it leaves.
    model = Detector(classes=3)
    VIDCheckpointer(model, fine_tune=True).load(path, [])
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
    checkpointer = VIDCheckpointer(Detector(classes=3), str(tmp_path), fine_tune=True)
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
    VIDCheckpointer(model).load(str(tmp_path / "w.pkl"))
    assert torch.equal(model.backbone.weight, torch.full((4, 2), 3.0))
