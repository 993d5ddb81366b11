"""tools/visualize_dataset.py: the pictures show what the mapper gives."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from encoded_videos import play
from tiny_videos import TinyVideos, make_tiny_videos
from tool_modules import import_tool

from clab_d2.engine.launch import load_config

tool = import_tool("visualize_dataset")


def run(config_file: str, tiny: TinyVideos, *arguments: object) -> int:
    return tool.main(["--config-file", config_file, *map(str, arguments), "--opts", *tiny.options])


def test_a_sheet_of_training_clips(config_file: str, tiny: TinyVideos, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert run(config_file, tiny, "--output", out, "--num-clips", 3) == 0
    three = cv2.imread(str(out))
    assert run(config_file, tiny, "--output", out, "--num-clips", 1) == 0
    one = cv2.imread(str(out))
    # three frames beside each other in a row, rows below each other
    assert one.shape[1] == three.shape[1] > 3 * 240
    assert three.shape[0] > 2.5 * one.shape[0]
    assert run(config_file, tiny, "--output", out, "--num-clips", 1) == 0
    assert (cv2.imread(str(out)) == one).all()  # the seed decides


def test_a_video_of_test_clips(config_file: str, tiny: TinyVideos, tmp_path: Path) -> None:
    out = tmp_path / "clips.mp4"
    assert run(config_file, tiny, "--output", out, "--num-clips", 2, "--test") == 0
    assert len(play(out)) == 2


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_boxes_follow_the_augmentation(
    flip: str, config_file: str, tiny: TinyVideos, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[np.ndarray, np.ndarray, list[int | None]]] = []

    def note(image: np.ndarray, boxes: np.ndarray, classes: list[int], names: list[str],
             track_ids: list[int | None], **how: object) -> np.ndarray:  # fmt: skip
        drawn.append((image, boxes, track_ids))
        return image

    monkeypatch.setattr(tool, "draw_boxes", note)
    cfg = load_config(config_file, [*tiny.options, "INPUT.RANDOM_FLIP", flip])
    drawer = tool.ClipDrawer(cfg, "tiny", is_train=True)
    np.random.seed(0)
    flips = set()
    for record in DatasetCatalog.get("tiny")[:6] * 3:
        drawn.clear()
        drawer.draw(record, 5)
        flips.add(drawer._augmentation.last.flip)
        assert len(drawn) == 3
        for image, boxes, tracks in drawn:
            assert tracks == [1]
            # video 1 shows a blue-channel square (OpenCV's blue: the last of RGB) on grey
            inside = (image[:, :, 2] > 200) & (image[:, :, 0] < 90)
            ys, xs = np.nonzero(inside)
            seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert np.abs(boxes[0] - seen).max() <= 2.5
    assert flips == ({"none"} if flip == "none" else {"none", flip})


def test_a_damaged_frame_is_passed_over(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = make_tiny_videos(tmp_path, lengths=(3,))
    for picture in sorted(tiny.image_root.rglob("*.jpg"))[:2]:
        picture.write_bytes(b"damaged")
    out = tmp_path / "sheet.png"
    assert run(config_file, tiny, "--output", out, "--num-clips", 3) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("left out: ") for line in lines) == 2


def test_mistakes_are_one_line(
    config_file: str, tiny: TinyVideos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (("--output", tmp_path / "a.gif"), "name a .png, .jpg or .mp4"),
        (("--output", tmp_path / "a.png", "--num-clips", 0), "must be at least 1"),
        (("--output", tmp_path / "a.png", "--dataset", "nope"), "'nope' is not registered"),
    ):
        assert run(config_file, tiny, *arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error
