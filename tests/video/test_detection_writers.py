"""Detections as files of other tools, whole at any moment."""

from __future__ import annotations

import csv
import json
import logging
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.structures import Boxes, Instances

from clab_d2.converters.cvat import convert_cvat
from clab_d2.errors import ConfigError, DataError
from clab_d2.video import FORMATS, DetectionWriter, FrameResult, open_detections

NAMES = ["cat", '<dog> & "Co"']
Row = tuple[int, float, tuple[float, float, float, float], int | None]  # class, score, box, track


def result(index: int, *rows: Row, with_tracks: bool = True) -> FrameResult:
    found = Instances(
        (48, 64),
        pred_boxes=Boxes(torch.tensor([row[2] for row in rows]).reshape(-1, 4)),
        scores=torch.tensor([row[1] for row in rows]),
        pred_classes=torch.tensor([row[0] for row in rows], dtype=torch.long),
    )
    if with_tracks:
        tracks = [-1 if row[3] is None else row[3] for row in rows]
        found.track_ids = torch.tensor(tracks, dtype=torch.long)
    return FrameResult(
        np.full((48, 64, 3), 90, np.uint8), index, index / 25, found, NAMES, "in/c.mp4"
    )


BOX, OTHER = (4.0, 30.0, 20.0, 46.5), (40.0, 5.0, 60.0, 21.0)
FRAMES = [
    result(0, (0, 0.9, BOX, 3), (1, 0.8, OTHER, None)),
    result(1, (0, 0.75, BOX, 3), (1, 0.25, OTHER, None)),
    result(2),
    result(3, (0, 0.9, OTHER, 3)),
    result(4, (1, 0.9, OTHER, 3)),
]


def opened(path: Path, name: str) -> DetectionWriter:
    return open_detections(path, name, "in/c.mp4", NAMES, 0.5)


def write(path: Path, name: str, frames: list[FrameResult] = FRAMES) -> Path:
    with opened(path, name) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def test_coco(tmp_path: Path) -> None:
    records = json.loads(write(tmp_path / "a.json", "coco").read_text())
    assert len(records) == 6
    assert records[1] == {
        "image_id": 1, "category_id": 2, "bbox": [40, 5, 20, 16], "score": 0.8, "video": "in/c.mp4",
        "frame_id": 0, "category": NAMES[1],
    }  # fmt: skip
    assert [r.get("track_id") for r in records] == [3, None, 3, None, 3, 3]
    assert json.loads(write(tmp_path / "none.json", "coco", [result(0)]).read_text()) == []


def test_csv(tmp_path: Path) -> None:
    with write(tmp_path / "a.csv", "csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[3] == {
        "video": "in/c.mp4", "frame": "1", "timestamp": "0.0400", "track_id": "", "class_id": "1",
        "class": NAMES[1], "score": "0.25000", "x1": "40.00", "y1": "5.00", "x2": "60.00",
        "y2": "21.00",
    }  # fmt: skip
    assert rows[2]["track_id"] == "3"


def test_mot(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.txt", "mot").read_text().splitlines()
    assert lines[0] == "1,3,5.00,31.00,16.00,16.50,0.90000,1,-1,-1"
    assert lines[1].startswith("1,-1,41.00,6.00,20.00,16.00,0.80000,2,")
    assert len(lines) == 6


def test_cvat_is_read_back_by_our_converter(tmp_path: Path) -> None:
    content, _ = convert_cvat([write(tmp_path / "a.xml", "cvat")])
    assert [category["name"] for category in content["categories"]] == NAMES
    assert [video["name"] for video in content["videos"]] == ["c"]
    assert all(image.get("annotated", True) for image in content["images"])
    frames = {image["id"]: image["frame_id"] for image in content["images"]}
    assert len(frames) == 5
    found = sorted(
        (frames[a["image_id"]], a["category_id"], *(round(v, 2) for v in a["bbox"]))
        for a in content["annotations"]
    )
    assert found == [
        (0, 1, 4, 30, 16, 16.5),
        (0, 2, 40, 5, 20, 16),
        (1, 1, 4, 30, 16, 16.5),
        (3, 1, 40, 5, 20, 16),
        (4, 2, 40, 5, 20, 16),
    ]
    instances = {(frames[a["image_id"]], a["category_id"]): a["instance_id"]
                 for a in content["annotations"]}  # fmt: skip
    assert instances[0, 1] == instances[1, 1] == instances[3, 1]
    assert len({instances[0, 1], instances[0, 2], instances[4, 2]}) == 3


def test_cvat_without_tracks_has_one_for_each_box(tmp_path: Path) -> None:
    frames = [result(n, (0, 0.9, BOX, None), with_tracks=False) for n in range(4)]
    root = ElementTree.parse(write(tmp_path / "a.xml", "cvat", frames)).getroot()
    tracks = root.findall("track")
    assert [[(b.get("frame"), b.get("outside")) for b in track] for track in tracks] == [
        *([(str(n), "0"), (str(n + 1), "1")] for n in range(3)),
        [("3", "0")],  # there is no frame after it
    ]
    assert root.findtext("meta/task/size").strip() == "4"
    assert root.findtext("meta/task/stop_frame").strip() == "3"


def test_labelme(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "labelme")
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{n:06d}.{kind}" for n in range(5) for kind in ("jpg", "json")
    )
    content = json.loads((folder / "000001.json").read_text())
    [shape] = content["shapes"]
    assert (shape["label"], shape["points"], shape["group_id"]) == (
        "cat", [[4, 30], [20, 46.5]], 3,
    )  # fmt: skip
    assert content["imagePath"] == "000001.jpg"
    assert (content["imageHeight"], content["imageWidth"]) == (48, 64)


def test_yolo(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "yolo", [*FRAMES[:3], result(3, (0, 1.0, (-8, 0, 32, 24), 1))])
    assert yaml.safe_load((folder / "data.yaml").read_text())["names"] == dict(enumerate(NAMES))
    texts = [path.read_text() for path in sorted((folder / "labels").iterdir())]
    assert texts[1:] == [
        "0 0.187500 0.796875 0.250000 0.343750\n", "", "0 0.250000 0.250000 0.500000 0.500000\n",
    ]  # fmt: skip
    assert len(list((folder / "images").iterdir())) == 4


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_broken_off_is_kept_and_can_be_read(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    suffix = FORMATS[name].suffix
    path = tmp_path / f"a{suffix}"
    before = b"the file before"
    if suffix:
        path.write_bytes(before)
    frames = [result(n, (0, 0.9, BOX, 3)) for n in range(30)]
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError), opened(path, name) as writer:
        for frame in frames:
            writer.write(frame)
        whole = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p != path}
        raise KeyError
    assert "the 30 frames so far are kept there" in caplog.text
    for file, content in whole.items():  # as a killed process would leave it
        assert file.read_bytes() == content
    if not suffix:
        return
    assert path.read_bytes() == before
    [partial] = whole
    assert partial.name == f"a.partial{suffix}"
    if name == "coco":
        assert len(json.loads(whole[partial])) == 30
    elif name == "cvat":
        assert len(ElementTree.fromstring(whole[partial]).findall("track/box")) >= 25
    else:
        assert len(whole[partial].splitlines()) == 30 + (name == "csv")


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_written_leaves_nothing_in_the_way(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{FORMATS[name].suffix}"
    with pytest.raises(KeyError), opened(path, name):
        raise KeyError
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for name in FORMATS:
        with pytest.raises(DataError, match="cannot be"):
            opened(tmp_path / "file" / "a", name)
    with pytest.raises(DataError, match="is not empty"):
        opened(tmp_path, "yolo")
    with pytest.raises(ConfigError, match="choose one of coco, csv"):
        opened(tmp_path / "a", "xls")
