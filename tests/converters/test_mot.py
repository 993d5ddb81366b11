"""MOT text files: the MOTChallenge's, CVAT's, and those that are not as they should be."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from encoded_videos import encode, moving_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from tracking_exports import mot_sequence, mot_text

from clab_d2.converters import mot
from clab_d2.converters.coco_vid_builder import ConversionOptions
from clab_d2.converters.dataset_checker import check_dataset
from clab_d2.converters.mot import MOT_CLASSES, MotOptions, convert_mot
from clab_d2.data.coco_vid import load_coco_vid
from clab_d2.errors import ConfigError, DataError

_ROW = (1, 1, 11, 6, 20, 10, 1, 1, 1)


def _keys(data: dict, *keys: str) -> list[list[Any]]:
    return [[annotation.get(key) for key in keys] for annotation in data["annotations"]]


def _pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.zeros((40, 50, 3), np.uint8))


def test_a_sequence(tmp_path: Path) -> None:
    rows = [
        (1, 3, 11, 6, 20, 10, 1, 1, 0.9),
        (3, 3, 12.5, 6, 20, 10, 1, 1, 0.25),
        (3, 8, 1, 1, 4, 4, 1, 1, 0.5),
    ]
    data, counts = convert_mot([mot_sequence(tmp_path / "MOT17-02", rows)])
    assert data["categories"] == [{"id": 1, "name": "pedestrian"}]
    assert data["videos"] == [{"id": 1, "name": "MOT17-02"}]
    assert data["images"] == [
        {
            "id": number + 1,
            "video_id": 1,
            "frame_id": number,
            "file_name": f"MOT17-02/img1/{number + 1:06d}.jpg",
            "width": 64,
            "height": 48,
            "annotated": True,
        }
        for number in range(4)
    ]
    keys = ("image_id", "category_id", "bbox", "instance_id", "occluded", "iscrowd")
    assert _keys(data, *keys) == [
        [1, 1, [10, 5, 20, 10], 1, False, 0],
        [3, 1, [11.5, 5, 20, 10], 1, True, 0],
        [3, 1, [0, 0, 4, 4], 2, False, 0],
    ]
    assert str(counts) == (
        "1 videos, 4 images (4 annotated), 3 objects of 2 tracks, "
        "2 annotated images without objects"
    )


def test_a_folder_of_sequences(tmp_path: Path) -> None:
    for name in ("train/b", "train/a", "val/a"):
        mot_sequence(tmp_path / "MOT" / name, [_ROW])
    data, _ = convert_mot([tmp_path / "MOT"])
    assert [video["name"] for video in data["videos"]] == ["train/a", "train/b", "val/a"]
    assert data["images"][0]["file_name"] == "train/a/img1/000001.jpg"
    assert [a["instance_id"] for a in data["annotations"]] == [1, 2, 3]
    data, _ = convert_mot([tmp_path / "MOT" / "train"])
    assert [video["name"] for video in data["videos"]] == ["a", "b"]
    with pytest.raises(DataError, match=r"two videos are called 'a' \(.*train/a.*val/a.*\); conv"):
        convert_mot([tmp_path / "MOT" / "train", tmp_path / "MOT" / "val"])


def test_cvat_export(tmp_path: Path) -> None:
    """Its labels are in a file, and its coordinates are CVAT's own."""
    rows = [(1, 1, 10.5, 5, 20, 10, 1, 2, 0.0), (2, -1, 10.5, 5, 20, 10, 0, 1, 1.0)]
    folder = mot_sequence(tmp_path / "a", rows, length=None, labels=["cat", "dog"])
    _pictures(folder / "img1", ["000001.PNG", "000002.PNG", "000003.PNG"])
    expected = [[1, 2, [10.5, 5, 20, 10], 1, True, 0], [2, 1, [10.5, 5, 20, 10], None, False, 1]]
    keys = ("image_id", "category_id", "bbox", "instance_id", "occluded", "iscrowd")
    data, counts = convert_mot([folder])
    assert [category["name"] for category in data["categories"]] == ["cat", "dog"]
    assert _keys(data, *keys) == expected
    assert [image["file_name"] for image in data["images"]] == [
        f"a/img1/00000{number}.PNG" for number in (1, 2, 3)
    ]
    assert (data["images"][0]["height"], data["images"][0]["width"]) == (40, 50)
    assert "1 objects to ignore (iscrowd), 1 objects without a track" in str(counts)

    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder).as_posix())
    data, _ = convert_mot([tmp_path / "task.zip"], ConversionOptions(size=(40, 50)))
    assert _keys(data, *keys) == expected
    assert [image["file_name"] for image in data["images"]] == [
        f"task/img1/00000{number}.PNG" for number in (1, 2, 3)
    ]


def test_pixel_origin_and_first_frame(tmp_path: Path) -> None:
    folder = mot_sequence(tmp_path / "a", [(0, 1, 10, 5, 20, 10)])
    options = MotOptions(first_frame=0, pixel_origin=0)
    data, _ = convert_mot([folder], mot=options)
    assert _keys(data, "image_id", "bbox") == [[1, [10, 5, 20, 10]]]
    assert data["images"][0]["file_name"] == "a/img1/000000.jpg"
    with pytest.raises(DataError, match=r"line 1 is '0,1,.*frames count from 1, unless --first-fr"):
        convert_mot([folder])


_MOT17_ROWS = [
    (1, 1, 11, 6, 20, 10, 1, 1, 1),  # a pedestrian
    (1, 2, 11, 6, 21, 10, 0, 1, 1),  # one to ignore
    (1, 3, 11, 6, 22, 10, 0, 3, 1),  # a car
    (1, 4, 11, 6, 23, 10, 0, 7, 1),  # a static person
    (1, 5, 11, 6, 24, 10, 0, 9, 1),  # an occluder
]


@pytest.mark.parametrize(
    ("ignored", "classes", "expected"),
    [
        ("crowd", None, [(20, "pedestrian", 0), (21, "pedestrian", 1), (23, "pedestrian", 1)]),
        ("drop", None, [(20, "pedestrian", 0)]),
        ("keep", ["pedestrian"], [(20, "pedestrian", 0), (21, "pedestrian", 0)]),
        (
            "keep",
            None,
            [
                (20, "pedestrian", 0),
                (21, "pedestrian", 0),
                (22, "car", 0),
                (23, "static person", 0),
                (24, "occluder", 0),
            ],
        ),
        ("keep", ["car", "static person"], [(22, "car", 0), (23, "static person", 0)]),
    ],
)
def test_what_the_benchmark_ignores(
    tmp_path: Path, ignored: str, classes: list[str] | None, expected: list[tuple[int, str, int]]
) -> None:
    folder = mot_sequence(tmp_path / "MOT17-02", _MOT17_ROWS)
    data, counts = convert_mot(
        [folder], ConversionOptions(classes=classes), MotOptions(ignored=ignored)
    )
    names = {category["id"]: category["name"] for category in data["categories"]}
    assert [
        (a["bbox"][2], names[a["category_id"]], a["iscrowd"]) for a in data["annotations"]
    ] == expected
    assert counts.ignored == sum(crowd for *_, crowd in expected)
    if ignored == "crowd":
        assert counts.noted["objects like pedestrians, to ignore"] == 1
        assert counts.noted["objects with flag 0 left out"] == 2


def test_classes_of_ones_own(tmp_path: Path) -> None:
    rows = [(1, 1, 11, 6, 20, 10, 1, 2, 1), (1, 2, 11, 6, 20, 10, 0, 1, 1)]
    folder = mot_sequence(tmp_path / "a", rows)
    mot = MotOptions(class_names=["car", "bus", "tram"])
    data, _ = convert_mot([folder], mot=mot)
    assert [category["name"] for category in data["categories"]] == ["car", "bus", "tram"]
    assert _keys(data, "category_id", "iscrowd") == [[2, 0], [1, 1]]
    data, counts = convert_mot([folder], ConversionOptions(classes=["bus"]), mot)
    assert _keys(data, "category_id", "iscrowd") == [[1, 0]]
    assert counts.noted["objects with flag 0 left out"] == 1
    # Names, not numbers, are what two sequences have in common.
    other = mot_sequence(tmp_path / "b", rows, labels=["tram", "car"])
    data, _ = convert_mot([folder, other], mot=MotOptions())
    assert [c["name"] for c in data["categories"]] == [MOT_CLASSES[1], "tram", "car"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,1,11,6,20,10", (1, False)),
        ("1,1,11,6,20,10,1", (1, False)),
        ("1, 1, 11, 6, 20, 10, -1, -1, -1, -1", (1, False)),  # MOT15: no world coordinates
        ("1,1,11,6,20,10,1,1.5,-3.25,0", (1, False)),  # MOT15: world coordinates
        ("1 1.0 11 6 20 10 1 3 0.1", (3, True)),
        ("1\t1\t11\t6\t20\t10\t1\t3", (3, False)),
        ("1,1,11,6,20,10,1,3,0.1,", (3, True)),
        ("\ufeff1,1,11,6,20,10,1,-1,-1\r\n\r\n", (1, False)),
    ],
)
def test_shapes_of_a_line(tmp_path: Path, text: str, expected: tuple[int, bool]) -> None:
    file = tmp_path / "clip.txt"
    file.write_text(text, encoding="utf-8")
    data, _ = convert_mot([file], ConversionOptions(size=(48, 64)))
    (annotation,) = data["annotations"]
    name = next(c["name"] for c in data["categories"] if c["id"] == annotation["category_id"])
    assert (MOT_CLASSES.index(name) + 1, annotation["occluded"]) == expected
    assert annotation["bbox"] == [10, 5, 20, 10]


def test_ten_numbers_with_class_names(tmp_path: Path) -> None:
    file = tmp_path / "clip.txt"
    file.write_text("1,1,11,6,20,10,1,2,0.1,-1\n")
    data, _ = convert_mot(
        [file], ConversionOptions(size=(48, 64)), MotOptions(class_names=["car", "bus"])
    )
    assert _keys(data, "category_id", "occluded") == [[2, True]]


def test_a_text_file_and_a_video_file(tmp_path: Path) -> None:
    file = tmp_path / "clip.txt"
    file.write_text(mot_text([_ROW]))
    encode(tmp_path / "clip.mp4", moving_pictures(7))
    options = ConversionOptions(clips="{video}.mp4", image_root=str(tmp_path))
    data, _ = convert_mot([file], options)
    assert data["videos"] == [{"id": 1, "name": "clip", "file": "clip.mp4"}]
    assert len(data["images"]) == 7
    assert data["images"][6]["file_name"] == "clip/000006.jpg"
    assert (data["images"][0]["height"], data["images"][0]["width"]) == (48, 64)
    with pytest.raises(DataError, match=r"don't name its video file, so '\{source\}' can't be fil"):
        convert_mot([file], ConversionOptions(clips="{source}", size=(48, 64)))


def test_length_as_far_as_there_are_objects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "clip.txt"
    file.write_text(mot_text([_ROW, (5, *_ROW[1:])]))
    data, _ = convert_mot([file], ConversionOptions(size=(48, 64)))
    assert len(data["images"]) == 5
    assert "clip.txt: nothing tells how many frames the video has: 5, as far as" in caplog.text


@pytest.mark.parametrize(
    ("frame", "said"), [(10**12, 10**12), (10**9, 10**9), (1e300, int(1e300))], ids=str
)
def test_a_stray_frame_number_does_not_fill_the_memory(
    tmp_path: Path, frame: float, said: int
) -> None:
    file = tmp_path / "clip.txt"
    file.write_text(f"1,1,2,3,4,4\n{frame},1,2,3,4,4\n")
    message = rf"clip.txt: line 2: the video would have {said} frames, which none has"
    with pytest.raises(DataError, match=message):
        convert_mot([file], ConversionOptions(size=(48, 64)))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = mot_sequence(tmp_path / "a", [_ROW])
    os.mkfifo(tmp_path / "clip.txt")
    with pytest.raises(DataError, match=r"clip.txt: a named pipe, not a file"):
        convert_mot([tmp_path / "clip.txt"])
    (folder / "gt" / "gt.txt").unlink()
    os.mkfifo(folder / "gt" / "gt.txt")
    with pytest.raises(DataError, match=r"gt/gt.txt: a named pipe, not a file"):
        convert_mot([folder / "gt" / "gt.txt"])


def test_a_text_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mot, "_MAX_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("gt/gt.txt", b"\n" * (2**20 + 1))
    with pytest.raises(DataError, match=r"gt.txt: more than 1 MiB; it is no MOT text file"):
        convert_mot([tmp_path / "a.zip"])


def test_detections(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines of a det.txt are boxes without tracks, and are told apart from annotations."""
    folder = mot_sequence(tmp_path / "a", [_ROW])
    (folder / "det").mkdir()
    det = folder / "det" / "det.txt"
    det.write_text("1,-1,11,6,20,10,0.8,-1,-1,-1\n1,-1,31,6,20,10,0.7,-1,-1,-1\n")
    with caplog.at_level(logging.WARNING):
        data, counts = convert_mot([det])
    assert "det.txt: objects have no numbers, but scores: these look like" in caplog.text
    assert data["videos"][0]["name"] == "a" and len(data["images"]) == 4
    assert all("instance_id" not in annotation for annotation in data["annotations"])
    assert counts.noted["objects without a track"] == 2 and counts.tracks == 0
    json_file = tmp_path / "made.json"
    json_file.write_text(json.dumps(data))
    assert [a["instance_id"] for a in load_coco_vid(str(json_file), "")[0]["annotations"]] == [
        -1, -1,
    ]
    caplog.clear()
    convert_mot([folder / "gt" / "gt.txt"])
    assert "look like" not in caplog.text


def test_pictures_that_are_there(tmp_path: Path) -> None:
    """They give the names: DanceTrack's have eight digits, and some begin with 0."""
    folder = mot_sequence(tmp_path / "a", [_ROW], length=3)
    _pictures(folder / "img1", ["00000000.jpg", "00000001.jpg", "00000002.jpg"])
    (folder / "img1" / "Thumbs.db").write_bytes(b"")
    data, _ = convert_mot([folder])
    assert data["images"][2]["file_name"] == "a/img1/00000002.jpg"
    json_file = tmp_path / "made.json"
    json_file.write_text(json.dumps(data))
    assert check_dataset(json_file, tmp_path).lines()[1:] == ["no problems found"]
    (folder / "img1" / "00000001.jpg").unlink()
    with pytest.raises(DataError, match=r"video a: 2 pictures are like .*a/img1/\*.jpg, but .* 3 "):
        convert_mot([folder])
    data, _ = convert_mot([folder], ConversionOptions(frames="{video}/img1/{frame:08d}.jpg"))
    assert data["images"][1]["file_name"] == "a/img1/00000001.jpg"


_BAD_LINES = {
    "line 1 is '1,1,2,3,4' (5 numbers); it must be frame, id, left, top": "1,1,2,3,4",
    "(could not convert string to float: 'a')": "1,1,2,3,4,a",
    "(a number is missing or not finite)": "1,1,,3,,4,4",
    "line 3 is '1,1,nan,3,4,4' (a number is missing or not finite)": "\n\n1,1,nan,3,4,4",
    "(frame 1.5)": "1.5,1,2,3,4,4",
    "(id 1.5)": "1,1.5,2,3,4,4",
    "(frame 0; frames count from 1, unless --first-frame 0 says otherwise)": "0,1,2,3,4,4",
    "(a negative size)": "1,1,2,3,-4,4",
    "(class 0; classes count from 1)": "1,1,2,3,4,4,1,0,1",
    "(class 1.5)": "1,1,2,3,4,4,1,1.5,1",
    "line 1 has class 13, but there are 12 class names; give all with --class-names": (
        "1,1,2,3,4,4,1,13,1"
    ),
    "lines 1 and 3 both have object 4 in frame 2; give each": (
        "2,4,2,3,4,4\n1,4,2,3,4,4\n2,4,5,3,4,4"
    ),
    "line 1 is of frame 5, but the video has 4 frames; correct seqinfo.ini": "5,1,2,3,4,4",
    "none of the 1 video(s) has a box of a class": "",
}


@pytest.mark.parametrize("message", _BAD_LINES)
def test_bad_lines(tmp_path: Path, message: str) -> None:
    folder = mot_sequence(tmp_path / "a", [])
    (folder / "gt" / "gt.txt").write_text(_BAD_LINES[message])
    with pytest.raises(DataError) as raised:
        convert_mot([folder])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    if not message.startswith("none of"):
        assert str(raised.value).startswith(f"{folder / 'gt' / 'gt.txt'}: ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[Sequence]", "[Video]", r"no section \[Sequence\]; correct or remove it"),
        ("[Sequence]\n", "", "not understood .*no section headers.*; correct or remove it"),
        ("seqLength=4", "seqLength=four", "not understood .*'four'.*; correct or remove it"),
        ("imWidth=64", "imWidth=-64", "4 frames of -64x48 pixels; correct or remove it"),
        ("imWidth=64", "", "4 frames of 0x48 pixels; correct or remove it"),
        ("imDir=img1", "imDir=../img1", r"imDir '\.\./img1' is no folder of the sequence"),
        # Not to be taken for a pattern, here one of a gigabyte of blanks.
        ("imDir=img1", "imDir={frame:>1000000000}", "imDir '.frame:.*' is no folder of the sequ"),
        ("imExt=.jpg", "imExt=[*", r"imExt '\[\*' is no ending of a picture's name; correct it"),
    ],
)
def test_bad_seqinfo(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = mot_sequence(tmp_path / "a", [_ROW])
    path = folder / "seqinfo.ini"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=f"seqinfo.ini: {message}") as raised:
        convert_mot([folder])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seqLength=4", f"seqLength={10**12}", f"video a would have {10**12} frames, which none"),
        ("imWidth=64", f"imWidth={10**12}", f"video a: no frame has {10**12}x48 pixels"),
    ],
)
def test_a_seqinfo_beyond_measure(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = mot_sequence(tmp_path / "a", [_ROW])
    path = folder / "seqinfo.ini"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        convert_mot([folder])


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.txt: no such file of annotations; check the path"):
        convert_mot([tmp_path / "none.txt"])
    with pytest.raises(DataError, match=r"holds no gt/gt.txt, nor does any folder in it; name the"):
        convert_mot([tmp_path])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("annotations.xml", "")
    with pytest.raises(DataError, match=r"a.zip: holds no gt/gt.txt; export it as 'MOT 1.1'"):
        convert_mot([tmp_path / "a.zip"])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a.txt: no text \(.*\); it must be a MOT text file"):
        convert_mot([tmp_path / "a.txt"])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty.txt: empty, and nothing else tells how many frame"):
        convert_mot([tmp_path / "empty.txt"])
    folder = mot_sequence(tmp_path / "b", [_ROW], labels=["cat", "cat"])
    with pytest.raises(DataError, match=r"labels.txt: it must name each class once, one a line"):
        convert_mot([folder])
    mot_sequence(tmp_path / "c", [_ROW], height_width=None)
    with pytest.raises(DataError, match=r"video c: nothing tells the size of its frames; give"):
        convert_mot([tmp_path / "c"])


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match=r"--ignored 'no': it must be one of crowd, drop, keep"):
        MotOptions(ignored="no")
    with pytest.raises(ConfigError, match="--class-names has a name twice"):
        MotOptions(class_names=["a", "a"])


@settings(max_examples=60, deadline=None)
@given(
    # track -> frame -> x, y, width, height in hundredths of a pixel, inside 64 x 48
    st.dictionaries(
        st.integers(0, 5),
        st.dictionaries(
            st.integers(0, 7),
            st.tuples(
                st.integers(0, 3000), st.integers(0, 2000),
                st.integers(1, 3400), st.integers(1, 2800),
            ),
            min_size=1,
        ),
        min_size=1,
    ),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 1]),
    st.randoms(use_true_random=False),
)
def test_round_trip(
    boxes: dict[int, dict[int, tuple[int, int, int, int]]], first: int, origin: int, random: Any
) -> None:
    """Boxes -> lines in any order -> CocoVID gives the same tracks of the same boxes."""
    rows = [
        (
            frame + first, number, *(round(value / 100 + origin, 2) for value in box[:2]),
            *(value / 100 for value in box[2:]), 1, number % 2 + 1, frame % 2,
        )
        for number, by_frame in boxes.items()
        for frame, box in by_frame.items()
    ]
    random.shuffle(rows)
    expected = Counter(
        frozenset((f, box, number % 2 + 1, f % 2 == 0) for f, box in by_frame.items())
        for number, by_frame in boxes.items()
    )
    with tempfile.TemporaryDirectory() as name:
        folder = mot_sequence(Path(name) / "a", rows, length=8, labels=["cat", "dog"])
        data, counts = convert_mot(
            [folder], mot=MotOptions(first_frame=first, pixel_origin=origin)
        )
        json_file = Path(name) / "made.json"
        json_file.write_text(json.dumps(data))
        records = load_coco_vid(str(json_file), name)
        report = check_dataset(json_file, name)
    assert {problem.kind for problem in report.problems} <= {"missing files"}
    made = defaultdict(set)
    for annotation in data["annotations"]:
        box = tuple(round(value * 100) for value in annotation["bbox"])
        made[annotation["instance_id"]].add(
            (
                annotation["image_id"] - 1, box,
                annotation["category_id"], annotation["occluded"],
            )
        )
    assert Counter(map(frozenset, made.values())) == expected
    assert counts.tracks == len(boxes) and len(records) == 8
    assert [len(record["annotations"]) for record in records] == [
        sum(frame in by_frame for by_frame in boxes.values()) for frame in range(8)
    ]
