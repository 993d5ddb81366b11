"""tools/check_dataset.py as its command line calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_videos import TinyVideos, make_tiny_videos
from tool_modules import import_tool

check = import_tool("check_dataset").main


@pytest.fixture
def tiny(tmp_path: Path) -> TinyVideos:
    return make_tiny_videos(tmp_path)


@pytest.fixture
def where(tiny: TinyVideos) -> list[str]:
    return ["--annotations", str(tiny.json_file), "--image-root", str(tiny.image_root)]


def test_a_good_dataset(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check([*where, "--frames", "--workers", "2"]) == 0
    output = capsys.readouterr()
    assert "3 videos, 9 images, 9 annotations, 9 frames read\nno problems found" in output.out
    assert "9/9" in output.err  # the progress bar


def test_faults_are_lines_and_an_exit_status(
    tiny: TinyVideos, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(tiny.json_file.read_text())
    data["annotations"][0]["bbox"] = [90, 0, 40, 40]
    data["annotations"][1]["bbox"] = [5, 5, 0, 0]
    data["categories"][0]["name"] = "sqare"
    tiny.json_file.write_text(json.dumps(data))
    next(tiny.image_root.rglob("*.jpg")).write_bytes(b"damaged")
    assert check([*where, "--frames", "--classes", "square,disc,bar"]) == 1
    errors = [
        line.split(" (")[0]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("error: ")
    ]
    assert errors == [
        "error: categories that are no class of the dataset: 1",
        "error: boxes outside the image: 1",
        "error: boxes of zero area: 1",
        "error: corrupt files: 1",
    ]


def test_what_cannot_be_checked_is_one_line(
    tiny: TinyVideos, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.json_file.write_text('{"images": [')
    assert check(where) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tiny.json_file}: not a whole JSON file")
    assert len(error.splitlines()) == 1
    assert check(["--dataset", "never_heard_of"]) == 2
    assert "'never_heard_of' is not registered" in capsys.readouterr().err


@pytest.fixture
def config(repo_root: Path) -> list[str]:
    return ["--config-file", str(repo_root / "configs/MiniVID/faster_rcnn.yaml")]


def test_a_config_has_its_objects_measured(
    tiny: TinyVideos, where: list[str], config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one file, or of all sets of the config; --opts tries what was proposed."""
    options = ["--opts", *tiny.options]
    assert check([*where, *config, *options]) == 0
    of_file = capsys.readouterr().out
    assert check([*config, *options]) == 0
    assert capsys.readouterr().out == of_file
    assert "9 objects at the model's input, INPUT.MIN_SIZE_TEST 128 MAX_SIZE_TEST 192" in of_file
    assert "warning" not in of_file
    assert check([*config, *options, "INPUT.MIN_SIZE_TEST", "32"]) == 0
    assert "warning: most objects are too small" in capsys.readouterr().out


def test_sizes_wait_for_the_errors(
    tiny: TinyVideos, where: list[str], config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(tiny.json_file.read_text())
    data["annotations"][0]["image_id"] = 99
    tiny.json_file.write_text(json.dumps(data))
    options = ["--opts", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    assert check([*where, *config, *options]) == 1
    output = capsys.readouterr().out
    assert "error: annotations of an unknown image: 1" in output
    assert output.endswith("object sizes: looked at once the errors are mended\n")
    assert check([*config, *options]) == 2
    assert "DATASETS.TRAIN and TEST are empty" in capsys.readouterr().err
