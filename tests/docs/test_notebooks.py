"""The notebooks of the docs run, cell by cell, with parameters of ours behind theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from detectron2.modeling import build_model
from encoded_videos import encode, moving_pictures
from tiny_videos import CLASSES, make_tiny_videos

from clab_d2.checkpoint.model_file import ModelCard, write_model_file
from clab_d2.checkpoint.portable_config import config_to_plain
from clab_d2.engine import load_config

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


def run_notebook(name: str, **parameters: object) -> tuple[dict[str, Any], str]:
    """Run a notebook's code in an empty namespace.

    Args:
        name: the file, without ``.ipynb``.
        parameters: put in the place of those of its cell tagged "parameters", each of which must be
            among them.

    Returns:
        The namespace after the last cell, and the text of all code.
    """
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    namespace: dict[str, Any] = {"__name__": "__main__"}
    code = []
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [] and cell["execution_count"] is None, "save it without outputs"
        source = "".join(cell["source"])
        code.append(source)
        exec(compile(source, f"{name}.ipynb, cell {number}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(parameters) <= set(namespace)
            namespace.update(parameters)
    return namespace, "\n".join(code)


@pytest.fixture(autouse=True)
def no_window() -> None:
    matplotlib.use("agg")


@pytest.fixture
def weights(tmp_path: Path, repo_root: Path) -> Path:
    """The file of a tiny detector, as it is initialised."""
    config = str(repo_root / "configs" / "quick_schedules" / "clab_quick.yaml")
    options = [*make_tiny_videos(tmp_path).options, "MODEL.DEVICE", "cpu"]
    cfg = load_config(config, options)
    torch.manual_seed(0)
    file = tmp_path / "model.pth"
    write_model_file(
        str(file), build_model(cfg).state_dict(), ModelCard(config_to_plain(cfg), CLASSES)
    )
    return file


@pytest.mark.parametrize("kind", ["file", "folder of videos"])
def test_detect_in_a_video(kind: str, weights: Path, tmp_path: Path) -> None:
    video = encode(tmp_path / "in.mp4", moving_pictures(5, 64, 96))
    if kind != "file":
        video = tmp_path / "frames"  # of the tiny videos
    namespace, _ = run_notebook("detect_in_a_video", WEIGHTS=str(weights), VIDEO=str(video))
    assert len(namespace["counts"]) == 5
    assert namespace["shown"].ndim == 3
    assert namespace["detector"].class_names == list(CLASSES)


def test_look_into_a_detector() -> None:
    namespace, _ = run_notebook(
        "look_into_a_detector",
        CONFIG="quick_schedules/clab_quick.yaml",
        OPTIONS=["MODEL.DEVICE", "cpu"],
    )
    assert list(namespace["added"]) == ["contrastive_branch"]
    assert namespace["temporal"] > namespace["alone"]
    assert namespace["values"][0] == namespace["weight"].START
