"""docs/scripts/measure_clip.py: both variants go over the clip, drawn, and their rates are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from encoded_videos import encode, moving_pictures
from tool_modules import import_docs_script

from clab_d2.checkpoint.model_file import ModelCard, write_model_file
from clab_d2.checkpoint.portable_config import config_to_plain
from clab_d2.engine import load_config

ROOT = Path(__file__).resolve().parents[2]


def test_both_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = import_docs_script("measure_clip")
    config = ROOT / "configs" / "quick_schedules" / "clab_quick.yaml"
    cfg = load_config(str(config), ["MODEL.DEVICE", "cpu"])
    names = [str(number) for number in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    weights = tmp_path / "model.pth"
    card = ModelCard(config_to_plain(cfg), names)
    write_model_file(weights, build_model(cfg).state_dict(), card)
    clip = encode(tmp_path / "clip.mp4", moving_pictures(12))
    words = ["--weights", str(weights), "--input", str(clip), "--size", "64", "96"]
    assert script.main([*words, "--frames", "3", "--passes", "2"]) == 0
    out = capsys.readouterr().out
    rate = r"[\d.]+ frames a second \([\d.]+ to [\d.]+\)"
    assert re.search(f"^single frame: {rate}$", out, re.MULTILINE)
    assert re.search(f"^temporal: {rate}$", out, re.MULTILINE)
    assert re.search(r"[\d.]+ times its single frame's time", out)
    assert script.main([*words, "--frames", "20"]) == 2
    assert "has 12 frames; give --frames of 7 at most" in capsys.readouterr().err
    assert script.main([*words, "--frames", "3", "--opts", "MODEL.NOPE", "1"]) == 2
    assert "MODEL.NOPE" in capsys.readouterr().err
