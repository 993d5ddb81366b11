"""Files of weights: what is read, and what is refused before it can do anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.errors import DataError


class Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_zip(value, path: Path) -> None:
    torch.save(value, path)


def save_legacy(value, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_pickle_2(value, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def save_pickle_4(value, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=4))


TORCH_SAVES = [save_zip, save_legacy]
PICKLE_SAVES = [save_pickle_2, save_pickle_4]


@pytest.mark.parametrize("save", TORCH_SAVES)
def test_torch_files_are_read(tmp_path, save):
    path = tmp_path / "weights.pth"
    save({"state_dict": {"w": torch.arange(3.0)}, "meta": {"CLASSES": ("a", "b")}}, path)
    content = load_weights_file(path)
    assert torch.equal(content["state_dict"]["w"], torch.arange(3.0))
    assert content["meta"] == {"CLASSES": ("a", "b")}


@pytest.mark.parametrize("save", PICKLE_SAVES)
def test_detectron2_zoo_pickles_are_read(tmp_path, save):
    path = tmp_path / "model_final.pkl"
    arrays = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.float64(0.5),
        "bytes": b"\x00\xff",
        "set": {1, 2},
    }
    save({"model": arrays, "__author__": "Detectron2 Model Zoo"}, path)
    content = load_weights_file(path)
    assert content["__author__"] == "Detectron2 Model Zoo"
    np.testing.assert_array_equal(content["model"]["weight"], arrays["weight"])
    assert {k: content["model"][k] for k in ("scalar", "bytes", "set")} == {
        "scalar": 0.5,
        "bytes": b"\x00\xff",
        "set": {1, 2},
    }


@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6),
    reason="torch before 2.6 can't be told to admit numpy's scalars under numpy 1's names",
)
def test_numpy_scalars_in_a_training_state_are_read(tmp_path):
    path = tmp_path / "model_0000009.pth"
    torch.save({"model": {}, "best": np.float64(0.25), "history": np.arange(3)}, path)
    content = load_weights_file(path)
    assert content["best"] == 0.25
    np.testing.assert_array_equal(content["history"], np.arange(3))


# Each save under an extension that suggests the other reader: the content decides, not the name.
@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl", "evil"])
@pytest.mark.parametrize("save", [*TORCH_SAVES, *PICKLE_SAVES])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, save, name):
    path, ran = tmp_path / name, tmp_path / "it_ran"
    save({"model": {"w": torch.ones(1) if save in TORCH_SAVES else 1}, "x": Touch(ran)}, path)
    with pytest.raises(DataError, match="could run code") as error:
        load_weights_file(path)
    assert not ran.exists()
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert "mkdir" in message
    assert "--trust" in message

    # The trap is real: the ordinary unpickler springs it.
    load_weights_file(path, trusted=True)
    assert ran.exists()


def test_code_hidden_in_an_array_of_objects_is_refused(tmp_path):
    path, ran = tmp_path / "evil.pkl", tmp_path / "it_ran"
    save_pickle_4({"model": {"w": np.array([Touch(ran)], dtype=object)}}, path)
    with pytest.raises(DataError, match="could run code"):
        load_weights_file(path)
    assert not ran.exists()


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("save", [*TORCH_SAVES, *PICKLE_SAVES])
def test_a_truncated_file_is_named(tmp_path, save, keep):
    path = tmp_path / "weights.pth"
    values = torch.ones(1000) if save in TORCH_SAVES else np.ones(1000)
    save({"model": {"w": values}}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"truncated or damaged.*fetch it again") as error:
        load_weights_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_unusable_files_are_named_in_one_line(tmp_path):
    def message(path: Path) -> str:
        with pytest.raises(DataError) as error:
            load_weights_file(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such file" in message(tmp_path / "missing.pth")
    assert "can't be read" in message(tmp_path)
    (tmp_path / "empty.pth").touch()
    assert "empty" in message(tmp_path / "empty.pth")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    assert "neither" in message(tmp_path / "page.pth")
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    assert "holds a Tensor" in message(tmp_path / "tensor.pth")
