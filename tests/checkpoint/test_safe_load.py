"""Files of weights: what is read, and what is refused before it can do anything."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.checkpoint.safetensors_file import write_safetensors
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


def test_zip_archives_that_are_no_weights_are_told(tmp_path):
    np.savez(tmp_path / "arrays.npz", w=np.ones(2))
    with pytest.raises(DataError, match="a zip archive, but none of weights"):
        load_weights_file(tmp_path / "arrays.npz")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(DataError, match=r"a TorchScript program .* state_dict\(\)"):
        load_weights_file(tmp_path / "program.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(DataError, match=r"pipe.pth: a named pipe, not a file"):
        load_weights_file(tmp_path / "pipe.pth")


def small_files() -> list[bytes]:
    """One whole file of each format."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w"
        tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
        files = []
        for save in TORCH_SAVES:
            save({"model": tensors, "iteration": 3}, path)
            files.append(path.read_bytes())
        for save in PICKLE_SAVES:
            save({"model": {name: value.numpy() for name, value in tensors.items()}}, path)
            files.append(path.read_bytes())
        write_safetensors(path, tensors, {"note": "x"})
        files.append(path.read_bytes())
    return files


@settings(max_examples=150, deadline=None)
@given(
    file=st.sampled_from(small_files()),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1),
    keep=st.sampled_from([1.0, 1.0, 0.9, 0.5]),
)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path_factory, file, changes, keep):
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    damaged = bytearray(file[: int(len(file) * keep)])
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    path.write_bytes(damaged)
    try:
        assert isinstance(load_weights_file(path), dict)
    except DataError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_safetensors_are_read_whatever_their_name(tmp_path, name):
    path = tmp_path / name
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3).T,
        "b": torch.tensor([True, False]),
        "c": torch.ones(3, dtype=torch.bfloat16),
        "d": torch.tensor(7),
    }
    write_safetensors(path, tensors, {"source": "here"})
    content = load_weights_file(path)
    assert content["metadata"] == {"format": "pt", "source": "here"}
    assert set(content["model"]) == set(tensors)
    for key, value in tensors.items():
        assert content["model"][key].dtype == value.dtype
        assert torch.equal(content["model"][key], value)
    # Written by the library itself, without texts.
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    assert list(load_weights_file(path)) == ["model"]


def test_a_safetensors_header_of_a_pickles_first_byte(tmp_path):
    """A length of 128 begins like a pickle."""
    path = tmp_path / "w.safetensors"
    for length in range(1, 60):
        write_safetensors(path, {"w": torch.ones(2)}, {"note": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert torch.equal(load_weights_file(path)["model"]["w"], torch.ones(2))


@pytest.mark.parametrize("keep", [4, 30, -3])
def test_a_truncated_safetensors_file_is_named(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"w": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"w.safetensors: .*(the whole of it|truncated)") as error:
        load_weights_file(path)
    assert "\n" not in str(error.value)
