"""The converter: the official JSON to the letter, and trees that are not as they should be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clab_d2.converters import ilsvrc
from clab_d2.converters.ilsvrc import convert, read_annotation
from clab_d2.data.coco_vid import load_coco_vid
from clab_d2.errors import DataError

_REPO = Path(__file__).resolve().parents[2]
_GOLDEN = _REPO / "tests" / "golden" / "ilsvrc_annotations"
_OUTPUTS = ("imagenet_vid_train.json", "imagenet_vid_val.json", "imagenet_det_30plus1cls.json")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the golden tree, to be damaged."""
    return Path(shutil.copytree(_GOLDEN / "ILSVRC", tmp_path / "ILSVRC"))


def _convert(tree: Path, **options) -> tuple[dict[str, dict], dict[str, ilsvrc.Counts]]:
    output = tree.parent / "annotations"
    counts = convert(tree, output, progress=False, **{"jobs": 1, **options})
    return {name: json.loads((output / name).read_text()) for name in counts}, counts


@pytest.mark.parametrize("jobs", [1, 2])
def test_equal_to_the_official_converters(
    tree: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ilsvrc, "_CHUNK", 7)  # so that this small tree is read in parallel
    monkeypatch.setattr(ilsvrc, "_CHUNKS_AHEAD", 2)
    made, counts = _convert(tree, jobs=jobs)
    assert list(made) == list(_OUTPUTS)
    for name, data in made.items():
        expected = json.loads((_GOLDEN / "expected" / name).read_text())
        assert data == expected
        assert [list(record) for record in data["images"]] == [
            list(record) for record in expected["images"]
        ]
    assert str(counts["imagenet_vid_train.json"]) == (
        "3 videos, 63 images, 45 key frames for training, 104 objects, "
        "2 images without objects, 18 objects of other classes"
    )


def test_what_is_made_can_be_trained_on(tree: Path) -> None:
    _convert(tree)
    folder = tree.parent / "annotations"
    train = load_coco_vid(str(folder / _OUTPUTS[0]), "Data/VID", "imagenet_vid_train")
    assert sum(r["is_key_frame"] for r in train) == 45
    assert train[0]["file_name"] == (
        "Data/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000/000000.JPEG"
    )
    det = load_coco_vid(str(folder / _OUTPUTS[2]), "Data/DET", "imagenet_det_30plus1cls")
    assert [r["is_key_frame"] for r in det] == [True] * 3 + [False] * 4
    # An antelope, an object of another class, a zebra: the second is dropped.
    assert [a["category_id"] for a in det[0]["annotations"]] == [1, 29]


def test_missing_lists(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = tree / "Lists"
    (lists / ilsvrc.DET_LIST).unlink()
    made, _ = _convert(tree)
    assert list(made) == list(_OUTPUTS[:2])
    assert "DET_train_30classes.txt: not there, so no imagenet_det_30plus1cls.json" in caplog.text
    (lists / ilsvrc.VID_TRAIN_LIST).unlink()
    assert list(_convert(tree)[0]) == [_OUTPUTS[1]]
    (lists / ilsvrc.VID_VAL_LIST).unlink()
    with pytest.raises(DataError, match=r"Lists: holds none of VID_train_15frames.txt, .*; put"):
        _convert(tree)
    with pytest.raises(DataError, match=r"Lists: no folder Annotations/; --root must be"):
        convert(lists, tree.parent)


@pytest.mark.parametrize(
    "line",
    [
        "train/video 1 x 9",
        "train/video 1",
        "train/video 1 -3 9",
        f"train/video 1 1 {10**12}",
        "train/video 1 1 " + "9" * 5000,
    ],
    ids=["letter", "short", "negative", "endless", "digits"],
)
def test_malformed_list(tree: Path, line: str) -> None:
    path = tree / "Lists" / ilsvrc.VID_TRAIN_LIST
    path.write_text(path.read_text() + f"\n{line}\n")
    with pytest.raises(DataError, match=rf"line 47 is '{line[:200]}'; it must be a name and 3 num"):
        _convert(tree)


def test_a_list_that_is_no_text(tree: Path) -> None:
    (tree / "Lists" / ilsvrc.VID_TRAIN_LIST).write_bytes(b"\xff\xfe\0")
    with pytest.raises(DataError, match=r"VID_train_15frames.txt: no text \(.*; fetch the list"):
        _convert(tree)


def test_a_pipe_is_not_waited_for(tree: Path) -> None:
    video = "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
    bad = tree / "Annotations" / "VID" / "train" / video / "000002.xml"
    bad.unlink()
    os.mkfifo(bad)
    _, counts = _convert(tree)
    assert counts[_OUTPUTS[0]].unreadable == [
        f"{bad}: a named pipe, not a file; write its data to a file first"
    ]


_DAMAGES = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no size": lambda data: data.replace(b"width", b"breadth"),
    "no number": lambda data: data.replace(b"<xmin>", b"<xmin>a"),
    "no box": lambda data: data.replace(b"bndbox", b"box"),
    "zero size": lambda data: data.replace(b"<width>320", b"<width>0"),
    "bomb": lambda data: b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_damaged_annotation_of_a_video(
    tree: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The frame stays as a reference, so that frame numbers have no gap."""
    video = "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
    bad = tree / "Annotations" / "VID" / "train" / video / "000002.xml"
    bad.write_bytes(_DAMAGES[damage](bad.read_bytes()))
    before = json.loads((_GOLDEN / "expected" / _OUTPUTS[0]).read_text())
    made, counts = _convert(tree)
    image = made[_OUTPUTS[0]]["images"][2]
    assert image == {**before["images"][2], "is_vid_train_frame": False, "annotated": False}
    assert [i for i in made[_OUTPUTS[0]]["images"] if i != image] == [
        i for i in before["images"] if i["id"] != 3
    ]
    assert not [a for a in made[_OUTPUTS[0]]["annotations"] if a["image_id"] == 3]
    (line,) = counts[_OUTPUTS[0]].unreadable
    assert line.startswith(f"{bad}: ") and "\n" not in line
    assert capsys.readouterr().err.count(str(bad)) == 1
    assert "1 unreadable annotation files" in str(counts[_OUTPUTS[0]])
    with pytest.raises(DataError, match=str(bad)):
        _convert(tree, strict=True)


def test_missing_annotations(tree: Path) -> None:
    video = tree / "Annotations" / "VID" / "val" / "ILSVRC2015_val_00000001"
    (video / "000000.xml").unlink()
    det = tree / "Annotations" / "DET" / "train" / "ILSVRC2013_train" / "n02084071"
    (det / "n02084071_1.xml").unlink()
    made, counts = _convert(tree)
    first = made[_OUTPUTS[1]]["images"][2]
    assert (first["width"], first["height"], first["annotated"]) == (1280, 720, False)
    assert "000000.xml: no such annotation file" in counts[_OUTPUTS[1]].unreadable[0]
    names = [image["file_name"] for image in made[_OUTPUTS[2]]["images"]]
    assert len(names) == 6 and not any("n02084071_1." in name for name in names)
    assert [image["id"] for image in made[_OUTPUTS[2]]["images"]] == [1, 2, 3, 4, 5, 6]
    shutil.rmtree(video)
    with pytest.raises(DataError, match=r"ILSVRC2015_val_00000001: none of its 8 annotation files"):
        _convert(tree)


def test_an_interrupted_run_leaves_nothing_half_written(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: str) -> ilsvrc.XmlFrame:
        if path.endswith("train_00000002/000005.xml"):
            raise KeyboardInterrupt
        return read_annotation(path)

    monkeypatch.setattr(ilsvrc, "_try_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _convert(tree)
    assert list((tree.parent / "annotations").iterdir()) == []


def test_command_line(tree: Path) -> None:
    command = [sys.executable, str(_REPO / "datasets" / "convert_ilsvrc.py"), "--output"]
    output = tree.parent / "out"
    done = subprocess.run(
        [*command, str(output), "--root", str(tree), "--jobs", "2"],
        capture_output=True, text=True, check=True, cwd=_REPO,
    )
    for name in _OUTPUTS:
        assert json.loads((output / name).read_text()) == json.loads(
            (_GOLDEN / "expected" / name).read_text()
        )
        assert f"{output / name}: " in done.stdout
    shutil.rmtree(tree / "Annotations")
    failed = subprocess.run(
        [*command, str(output), "--root", str(tree)], capture_output=True, text=True, cwd=_REPO
    )
    assert failed.returncode == 2
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {tree}: no folder Annotations/")
    assert "Traceback" not in failed.stderr
