"""datasets/convert_cvat.py and datasets/convert_mot.py as their command lines call them."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tracking_exports import CvatFile, CvatTask, CvatTrack, mot_sequence, mot_text

Main = Callable[[list[str]], int]

_BOX = (10.0, 8.0, 30.0, 28.0)
_ROW = (1, 1, 11, 6, 20, 10, 1, 1, 1)


def _load(repo_root: Path, name: str) -> Main:
    return runpy.run_path(str(repo_root / "datasets" / f"{name}.py"))["main"]


@pytest.fixture(autouse=True)
def _signals() -> Any:
    """The scripts change what SIGTERM does, which must not outlast them here."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def cvat(repo_root: Path) -> Main:
    return _load(repo_root, "convert_cvat")


@pytest.fixture
def mot(repo_root: Path) -> Main:
    return _load(repo_root, "convert_mot")


@pytest.fixture
def exports(tmp_path: Path) -> list[str]:
    """Five tasks' exports; only the last one's video has a dog."""
    paths = []
    for number in range(5):
        tracks = [CvatTrack("dog" if number == 4 else "cat", [(0, _BOX, {}), (4, _BOX, {})])]
        file = CvatFile([CvatTask(3, source=f"v{number}.mp4", step=2)], tracks)
        paths.append(str(file.write(tmp_path / "exports" / f"{number}.zip")))
    return paths


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_cvat_to_one_file(
    cvat: Main, exports: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "mine.json"
    assert cvat(["--input", *exports, "--output", str(output)]) == 0
    data = _read(output)
    assert [video["name"] for video in data["videos"]] == ["v0", "v1", "v2", "v3", "v4"]
    assert data["images"][2]["file_name"] == "v0/000004.jpg"
    assert capsys.readouterr().out == (
        f"{output}: 5 videos, 15 images (10 annotated), 10 objects of 5 tracks, "
        "0 annotated images without objects\n"
    )
    assert [path.name for path in output.parent.iterdir()] == ["mine.json"]


def test_cvat_with_every_option(
    cvat: Main, exports: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = tmp_path / "train.json", tmp_path / "val.json"
    options = ["--classes", "dog, cat", "--train-every", "2", "--clips", "--fill-gaps"]
    options += ["--key-frames-only", "--name-by", "file", "--frames", "{video}-{number}.png"]
    options += ["--val-output", str(val), "--val-videos", "4", "1"]
    folder = str(Path(exports[0]).parent)
    assert cvat(["--input", folder, "--output", str(train), *options]) == 0
    both = _read(train), _read(val)
    assert [[video["name"] for video in part["videos"]] for part in both] == [
        ["0", "2", "3"], ["1", "4"],
    ]
    for part in both:
        assert [category["name"] for category in part["categories"]] == ["dog", "cat"]
    assert [video["file"] for video in both[1]["videos"]] == ["v1.mp4", "v4.mp4"]
    assert [image["file_name"] for image in both[0]["images"][:2]] == ["0-1.png", "0-2.png"]
    assert [image["annotated"] for image in both[0]["images"][:5]] == [
        True, False, False, False, True,
    ]
    assert [image["is_vid_train_frame"] for image in both[0]["images"][:5]] == [
        True, False, False, False, False,
    ]
    assert all(annotation["motion_iou"] == 1 for annotation in both[0]["annotations"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("all: 5 videos, 25 images (10 annotated), 10 objects of 5 tracks")
    assert lines[1:] == [
        f"{train}: 3 videos (0, 2, 3), 15 images, 6 objects",
        f"{val}: 2 videos (1, 4), 10 images, 4 objects",
    ]


def test_validation_share(cvat: Main, exports: list[str], tmp_path: Path) -> None:
    train, val = tmp_path / "train.json", tmp_path / "val.json"
    command = ["--input", *exports, "--output", str(train), "--val-output", str(val)]
    assert cvat(command) == 0
    assert [video["name"] for video in _read(val)["videos"]] == ["v2"]
    assert cvat([*command, "--val-fraction", "0.4"]) == 0
    assert [video["name"] for video in _read(val)["videos"]] == ["v1", "v3"]


def test_mot(
    mot: Main,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    mot_sequence(tmp_path / "MOT" / "a", [_ROW, (2, 2, 1, 1, 5, 5, 0, 1, 1)])
    output = tmp_path / "mine.json"
    command = ["--input", str(tmp_path / "MOT"), "--output", str(output)]
    assert mot(command) == 0
    assert [annotation["iscrowd"] for annotation in _read(output)["annotations"]] == [0, 1]
    assert capsys.readouterr().out == (
        f"{output}: 1 videos, 4 images (4 annotated), 2 objects of 2 tracks, "
        "2 annotated images without objects, 1 objects to ignore (iscrowd)\n"
    )
    options = ["--ignored", "keep", "--class-names", "cat,dog", "--pixel-origin", "0"]
    assert mot([*command, *options]) == 0
    data = _read(output)
    assert [category["name"] for category in data["categories"]] == ["cat", "dog"]
    assert data["annotations"][0]["bbox"] == [11, 6, 20, 10]
    assert data["annotations"][1]["iscrowd"] == 0
    text = tmp_path / "b.txt"
    text.write_text(mot_text([(0, *_ROW[1:])]))
    assert mot(["--input", str(text), "--output", str(output), "--first-frame", "0",
                "--size", "64x48", "--clips"]) == 0  # fmt: skip
    assert _read(output)["videos"] == [{"id": 1, "name": "b", "file": "b.mp4"}]
    assert _read(output)["images"][0]["height"] == 48
    assert "b.txt: nothing tells how many frames the video has" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "64"], "'64' is not WIDTHxHEIGHT, such as 1280x720"),
        (["--size", "0x48"], "'0x48' is not WIDTHxHEIGHT"),
        (["--classes", "cat,,dog"], "'cat,,dog' has an empty name"),
        (["--val-fraction", "0.2"], "--val-videos and --val-fraction need --val-output"),
        (["--val-videos", "a"], "--val-videos and --val-fraction need --val-output"),
        (["--val-output", "v.json", "--val-fraction", "1"], "must be between 0 and 1"),
        (["--val-output", "o.json"], "--val-output and --output are the same file"),
        (
            ["--val-output", "v.json", "--val-fraction", "0.2", "--val-videos", "a"],
            "give --val-videos or --val-fraction, not both",
        ),
    ],
)
def test_bad_command_lines(
    cvat: Main, mot: Main, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for main in (cvat, mot):
        with pytest.raises(SystemExit) as ended:
            main(["--input", "a.zip", "--output", "o.json", *options])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_users_mistakes_are_one_line(
    cvat: Main, exports: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.json"
    output.write_text("as it was")
    command = ["--input", *exports, "--output", str(output)]
    for options, message in (
        (["--frames", "a.jpg"], "error: --frames 'a.jpg' gives all frames one name"),
        (["--train-every", "0"], "error: --train-every 0: it must be at least 1"),
        (["--classes", "cow"], "error: --classes: no label 'cow'"),
        (["--val-output", f"{output}.2", "--val-videos", "x"], "error: --val-videos: no video is"),
        (["--val-output", str(output / "v.json")], f"error: {output}"),
    ):
        assert cvat([*command, *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith(message) and error.count("\n") == 1
    os.remove(exports[0])
    assert cvat(command) == 2
    assert capsys.readouterr().err == (
        f"error: {exports[0]}: no such export of CVAT; check the path\n"
    )
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mine.json"]


def test_as_a_script(repo_root: Path, exports: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repo_root / "datasets" / "convert_cvat.py"), "--input", exports[0],
         "--output", str(tmp_path / "mine.json")],
        capture_output=True, text=True, check=True, cwd=repo_root,
    )  # fmt: skip
    assert done.stdout.startswith(f"{tmp_path / 'mine.json'}: 1 videos, 3 images (2 annotated)")
