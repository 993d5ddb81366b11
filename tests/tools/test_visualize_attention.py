"""tools/visualize_attention.py as a command."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch
from detectron2.modeling import build_model
from encoded_videos import encode, moving_pictures
from tiny_videos import TinyVideos
from tool_modules import import_tool

from clab_d2.engine.launch import load_config

attention = import_tool("visualize_attention")


@pytest.fixture(scope="module")
def weights(tiny: TinyVideos, config_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_model(load_config(config_file, [*tiny.options, "MODEL.DEVICE", "cpu"]))
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def look(tiny: TinyVideos, config_file: str, weights: Path, tmp_path: Path):
    clip = encode(tmp_path / "in.mp4", moving_pictures(7, 64, 96))

    def run(*arguments: object) -> int:
        options = [*tiny.options, "MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
        common = ["--weights", weights, "--config-file", config_file, "--input", clip]
        return attention.main([*map(str, [*common, *arguments]), "--opts", *options])

    return run


def test_attention_is_drawn(look, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    assert look("--frame", 3, "--output", out, "--detection", 1, "--references", 3) == 0
    said = capsys.readouterr().out
    assert "* 1: " in said and "  0: " in said
    assert "SELSA's weight by reference frame: 0: " in said
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 600
    assert look("--frame", 3, "--output", out, "--detection", 1, "--references", 1) == 0
    assert cv2.imread(str(out)).shape[1] < picture.shape[1]


def test_attentions_mistakes_are_one_line(
    look, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (("--frame", 70), "no frame 70"),
        (("--frame", 0, "--detection", 9999), "--detection is 9999; frame 0 has 0 to"),
        (("--frame", 0, "--class", "yeti"), "--class yeti: choose among square, disc, bar"),
        (("--frame", 0, "--layer", 9), "--layer is 9; SELSA follows"),
    ):
        assert look("--output", tmp_path / "a.png", *arguments) == 2
        error = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("error: ")]
        assert len(error) == 1 and message in error[0]
    assert look("--output", tmp_path / "a.gif", "--frame", 0) == 2
