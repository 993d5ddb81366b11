"""CVAT's video exports: every frame number, every box, and files that are not as they should be."""

from __future__ import annotations

import json
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
from tracking_exports import CvatFile, CvatTask, CvatTrack

from clab_d2.converters.coco_vid_builder import ConversionOptions, Counts, split_videos
from clab_d2.converters.cvat import convert_cvat, upright_box
from clab_d2.converters.dataset_checker import check_dataset
from clab_d2.data.coco_vid import load_coco_vid
from clab_d2.data.frames import read_frame
from clab_d2.errors import ConfigError, DataError
from clab_d2.evaluation import GroundTruth

_BOX = (10.0, 8.0, 30.0, 28.0)
_OUT = {"outside": 1}
_BETWEEN = {"keyframe": 0}


def _track(label: str = "cat", frames: tuple[int, ...] = (0,), **more: Any) -> CvatTrack:
    return CvatTrack(label, [(frame, _BOX, {}) for frame in frames], **more)


def _convert(
    tmp_path: Path, file: CvatFile, name_by: str = "source", **options: Any
) -> tuple[dict, Counts]:
    path = file.write(tmp_path / "annotations.xml")
    return convert_cvat([path], ConversionOptions(**options), name_by)


def _frames_of(data: dict, key: str = "file_name") -> list[Any]:
    """Of each annotation, what its image has under ``key``."""
    images = {image["id"]: image for image in data["images"]}
    return [images[annotation["image_id"]][key] for annotation in data["annotations"]]


def test_a_task(tmp_path: Path) -> None:
    tracks = [
        CvatTrack(
            "dog",
            [(1, _BOX, {"occluded": 1}), (2, (11, 8, 31, 28.5), _BETWEEN), (3, _BOX, _OUT)],
        ),
        CvatTrack("cat", [(2, (0, 0, 5, 6), {})]),
    ]
    data, counts = _convert(tmp_path, CvatFile([CvatTask(5)], tracks))
    assert data["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert data["videos"] == [{"id": 1, "name": "clip"}]
    assert data["images"] == [
        {
            "id": number + 1,
            "video_id": 1,
            "frame_id": number,
            "file_name": f"clip/{number:06d}.jpg",
            "width": 64,
            "height": 48,
            "annotated": True,
        }
        for number in range(5)
    ]
    keys = ("image_id", "category_id", "bbox", "area", "instance_id", "occluded", "iscrowd")
    assert [[annotation[key] for key in keys] for annotation in data["annotations"]] == [
        [2, 2, [10, 8, 20, 20], 400, 1, True, 0],
        [3, 2, [11, 8, 20, 20.5], 410, 1, False, 0],
        [3, 1, [0, 0, 5, 6], 30, 2, False, 0],
    ]
    assert [annotation["id"] for annotation in data["annotations"]] == [1, 2, 3]
    assert str(counts) == (
        "1 videos, 5 images (5 annotated), 3 objects of 2 tracks, "
        "3 annotated images without objects"
    )


@pytest.mark.parametrize("suffix", [".zip", ".xml"])
def test_as_zip_file_or_folder(tmp_path: Path, suffix: str) -> None:
    file = CvatFile([CvatTask(2)], [_track()])
    file.write(tmp_path / "exports" / f"one{suffix}")
    data, _ = convert_cvat([tmp_path / "exports"])
    assert len(data["annotations"]) == 1


def test_a_frame_filter(tmp_path: Path) -> None:
    """Frames are numbered as in the video, here 100, 105, 110, 115."""
    file = CvatFile([CvatTask(4, start=100, step=5)], [_track(frames=(100, 105, 110))])
    data, _ = _convert(tmp_path, file)
    assert [image["frame_id"] for image in data["images"]] == [0, 1, 2, 3]
    assert _frames_of(data) == ["clip/000100.jpg", "clip/000105.jpg", "clip/000110.jpg"]

    data, _ = _convert(tmp_path, file, fill_gaps=True)
    assert [image["frame_id"] for image in data["images"]] == list(range(16))
    known = [image["file_name"] for image in data["images"] if image["annotated"]]
    assert known == [f"clip/000{n}.jpg" for n in (100, 105, 110, 115)]
    assert _frames_of(data, "frame_id") == [0, 5, 10]

    for stop, last in ((118, 118), (115, 115), (9999, 119), (0, 115)):
        file.tasks[0].stop = stop
        images = _convert(tmp_path, file, fill_gaps=True)[0]["images"]
        assert images[-1]["file_name"] == f"clip/{last:06d}.jpg"

    data, _ = _convert(tmp_path, file, frames="{source}_{video}/{index}_{number}.png")
    assert _frames_of(data)[1] == "clip.mp4_clip/1_106.png"


def test_a_frame_filter_of_a_video_file(tmp_path: Path) -> None:
    """Positions in the JSON are not frame numbers: the names say which frame it is."""
    file = CvatFile([CvatTask(4, start=10, step=5)], [_track(frames=(10, 20))])
    data, _ = _convert(tmp_path, file, clips="{source}")
    assert data["videos"][0]["file"] == "clip.mp4"
    assert [image["file_name"] for image in data["images"]] == [
        f"clip.mp4#{number}" for number in (10, 15, 20, 25)
    ]
    data, _ = _convert(
        tmp_path, CvatFile([CvatTask(4, step=5)], [_track()]), clips="{source}", fill_gaps=True
    )
    assert data["videos"][0]["file"] == "clip.mp4"
    assert data["images"][15]["file_name"] == "clip/000015.jpg"


def test_frames_are_read_from_the_video_file(tmp_path: Path) -> None:
    pictures = moving_pictures(14)
    encode(tmp_path / "clip.mp4", pictures)
    task = CvatTask(4, start=3, step=3, height_width=None)
    data, _ = _convert(
        tmp_path, CvatFile([task], [_track(frames=(6,))]),
        clips="{source}", image_root=str(tmp_path),
    )
    assert (data["images"][0]["height"], data["images"][0]["width"]) == (48, 64)
    json_file = tmp_path / "mine.json"
    json_file.write_text(json.dumps(data))
    assert check_dataset(json_file, tmp_path, frames=True).lines()[1:] == ["no problems found"]
    record = load_coco_vid(str(json_file), str(tmp_path))[1]
    assert len(record["annotations"]) == 1
    shown = read_frame(record["file_name"]).astype(float)
    errors = [np.abs(shown - picture).mean() for picture in pictures]
    assert int(np.argmin(errors)) == 6


def test_deleted_frames(tmp_path: Path) -> None:
    """CVAT writes no box on them; a track that goes on shows where they were."""
    tracks = [_track(frames=(0, 1, 4, 5)), _track("dog", (3, 5))]
    task = CvatTask(8, more="<deleted_frames>6</deleted_frames>")
    data, counts = _convert(tmp_path, CvatFile([task], tracks))
    annotated = [image["annotated"] for image in data["images"]]
    assert annotated == [True, True, False, False, False, True, False, True]
    assert _frames_of(data, "frame_id") == [0, 1, 5, 5]
    assert counts.noted["objects left out on images that are not annotated"] == 2
    # A word that the object is outside leaves no doubt.
    tracks = [CvatTrack("cat", [(0, _BOX, {}), (1, _BOX, _OUT), (4, _BOX, {})])]
    data, _ = _convert(tmp_path, CvatFile([CvatTask(6)], tracks))
    assert all(image["annotated"] for image in data["images"])


def test_deleted_frames_are_positions_in_the_task(tmp_path: Path) -> None:
    more = "<deleted_frames><frame>3</frame><frame>4</frame></deleted_frames>"
    task = CvatTask(6, start=20, step=2, more=more)
    data, _ = _convert(tmp_path, CvatFile([task], [_track(frames=(20,))]))
    assert [i["file_name"] for i in data["images"] if not i["annotated"]] == [
        "clip/000026.jpg", "clip/000028.jpg",
    ]
    # A job begins with a later frame of its task.
    more += "<segments><segment><id>1</id><start>2</start><stop>7</stop></segment></segments>"
    task = CvatTask(6, start=24, step=2, more=more, kind="job")
    data, _ = _convert(tmp_path, CvatFile([task], [_track(frames=(24,))]), frames="{frame}.png")
    assert [i["file_name"] for i in data["images"] if not i["annotated"]] == ["26.png", "28.png"]


def test_key_frames_only(tmp_path: Path) -> None:
    moving = [(f, (f, 0.0, f + 10.0, 10.0), {} if f % 4 == 0 else _BETWEEN) for f in range(9)]
    file = CvatFile([CvatTask(10)], [CvatTrack("cat", moving)])
    data, counts = _convert(tmp_path, file, key_frames_only=True)
    assert [i["frame_id"] for i in data["images"] if i["annotated"]] == [0, 4, 8]
    assert _frames_of(data, "frame_id") == [0, 4, 8]
    assert counts.noted["objects left out on images that are not annotated"] == 6
    # Its speed is that of the whole track, as without the option.
    everything = GroundTruth.from_json(_convert(tmp_path, file)[0], "all")
    some = GroundTruth.from_json(data, "some")
    np.testing.assert_allclose(some.motion_iou, everything.motion_iou[[0, 4, 8]], atol=1e-6)
    assert some.motion_iou.max() < 1


def test_a_video_of_a_project(tmp_path: Path) -> None:
    """A task's frame numbers go on where those of the one before, in the same subset, end."""
    tasks = [
        CvatTask(5, id=1, source="a.mp4"),
        CvatTask(3, id=2, source="b.mp4", start=2, step=2),
        CvatTask(4, id=3, source="c.mp4", subset="test", height_width=(10, 20)),
    ]
    tracks = [
        _track(frames=(1,), task_id=1),
        _track("dog", frames=(7, 9, 11), task_id=2),
        CvatTrack("cat", [(3, (1, 1, 4, 4), {})], task_id=3),
    ]
    data, _ = _convert(tmp_path, CvatFile(tasks, tracks, project=True))
    assert [video["name"] for video in data["videos"]] == ["a", "b", "c"]
    assert _frames_of(data) == [
        "a/000001.jpg", "b/000002.jpg", "b/000004.jpg", "b/000006.jpg", "c/000003.jpg",
    ]
    assert (data["images"][-1]["height"], data["images"][-1]["width"]) == (10, 20)
    assert [a["instance_id"] for a in data["annotations"]] == [1, 2, 2, 2, 3]
    # Numbers from each task's own start are understood as well.
    tracks[1] = _track("dog", frames=(2, 6), task_id=2)
    data, _ = _convert(tmp_path, CvatFile(tasks, tracks, project=True))
    assert _frames_of(data)[1:3] == ["b/000002.jpg", "b/000006.jpg"]


def test_a_job(tmp_path: Path) -> None:
    """Its file names neither task nor video, and has the size elsewhere."""
    file = CvatFile([CvatTask(3, kind="job", start=6)], [_track(frames=(7,))])
    data, _ = convert_cvat([file.write(tmp_path / "job_7.zip")])
    assert data["videos"] == [{"id": 1, "name": "job_7"}]
    assert _frames_of(data) == ["job_7/000007.jpg"]
    with pytest.raises(DataError, match=r"video job_7: its annotations don't name its video file"):
        convert_cvat([tmp_path / "job_7.zip"], ConversionOptions(clips="{source}"))


def test_names(tmp_path: Path) -> None:
    task = CvatTask(2, name="../day 1", source="C:\\clips\\a.b.avi")
    file = CvatFile([task], [_track()])
    names = {
        by: _convert(tmp_path, file, name_by=by)[0]["videos"][0]["name"]
        for by in ("source", "task", "file")
    }
    assert names == {"source": "a.b", "task": ".._day 1", "file": tmp_path.name}
    task.source, task.name = None, ".."
    assert _convert(tmp_path, file)[0]["videos"][0]["name"] == tmp_path.name
    for name in ("x", "y"):
        CvatFile([CvatTask(2)], [_track()]).write(tmp_path / f"{name}.zip")
    with pytest.raises(DataError, match=r"two videos are called 'clip' \(.*x.zip/.*y.zip.*--name"):
        convert_cvat([tmp_path / "x.zip", tmp_path / "y.zip"])
    data, _ = convert_cvat([tmp_path / "x.zip", tmp_path / "y.zip"], name_by="file")
    assert [video["name"] for video in data["videos"]] == ["x", "y"]


def test_rotated_boxes(tmp_path: Path) -> None:
    boxes = [(0, (20, 10, 40, 20), {"rotation": "90.00"}), (1, (20, 10, 40, 20), {"rotation": "0"})]
    data, counts = _convert(tmp_path, CvatFile([CvatTask(2)], [CvatTrack("cat", boxes)]))
    assert [a["bbox"] for a in data["annotations"]] == [[25, 5, 10, 20], [20, 10, 20, 10]]
    assert "1 rotated boxes made upright" in str(counts)


@given(
    st.tuples(*[st.floats(-50, 50)] * 2, *[st.floats(0.1, 100)] * 2), st.floats(-720, 720)
)
def test_upright_boxes_are_tight(box: tuple[float, float, float, float], degrees: float) -> None:
    x, y, width, height = box
    corners = np.array([(x, y), (x + width, y), (x, y + height), (x + width, y + height)])
    middle = corners.mean(axis=0)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = (corners - middle) @ turn + middle
    expected = [*turned.min(axis=0), *np.ptp(turned, axis=0)]
    np.testing.assert_allclose(upright_box(box, degrees), expected, atol=1e-6)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    tracks = [
        _track(shape="polygon"),
        _track("dog", shape="polygon"),
        _track(shape="points"),
        CvatTrack("cat", [(0, (60, 40, 70, 50), {}), (1, (70, 50, 80, 60), {}), (2, _BOX, {})]),
        CvatTrack("cat", [(0, (5, 5, 5, 9), {})]),
        CvatTrack("cat", []),
        _track("dog", frames=(2, 3)),
    ]
    data, counts = _convert(tmp_path, CvatFile([CvatTask(4)], tracks), classes=["cat"])
    assert [a["bbox"] for a in data["annotations"]] == [[60, 40, 4, 8], [10, 8, 20, 20]]
    assert data["categories"] == [{"id": 1, "name": "cat"}]
    assert dict(+counts.noted) == {
        "polygon tracks left out": 2,
        "points tracks left out": 1,
        "empty tracks left out": 1,
        "objects cut at the picture's border": 1,
        "objects without area inside the picture left out": 2,
        "objects of other classes left out": 2,
    }
    assert "2 polygon tracks left out, 1 points tracks left out" in str(counts)


def test_labels(tmp_path: Path) -> None:
    """Labels of skeletons' points and of other shapes are no classes, unless they have boxes."""
    file = CvatFile([CvatTask(2)], [_track("road")], labels=("road", "lane", "cat", "eye", "dog"))
    file.label_more = {
        "road": "<type>polygon</type>",
        "lane": "<type>polyline</type>",
        "cat": "<type>rectangle</type>",
        "eye": "<type>points</type><parent>cat</parent>",
        "dog": "<type>any</type>",
    }
    data, _ = _convert(tmp_path, file)
    assert [c["name"] for c in data["categories"]] == ["road", "cat", "dog"]
    data, _ = _convert(tmp_path, file, classes=["dog", "road"])
    assert [c["name"] for c in data["categories"]] == ["dog", "road"]
    assert data["annotations"][0]["category_id"] == 2
    with pytest.raises(DataError, match=r"--classes: no label 'car' .* which have road, cat, dog;"):
        _convert(tmp_path, file, classes=["car"])


def test_sizes_from_pictures(tmp_path: Path) -> None:
    file = CvatFile([CvatTask(2, height_width=None)], [_track()])
    with pytest.raises(DataError, match=r"video clip: nothing tells the size of its frames; give"):
        _convert(tmp_path, file)
    with pytest.raises(DataError, match="nothing tells the size"):
        _convert(tmp_path, file, image_root=str(tmp_path))
    data, _ = _convert(tmp_path, file, size=(30, 50))
    assert (data["images"][0]["height"], data["images"][0]["width"]) == (30, 50)
    (tmp_path / "clip").mkdir()
    cv2.imwrite(str(tmp_path / "clip" / "000000.jpg"), np.zeros((40, 60, 3), np.uint8))
    data, _ = _convert(tmp_path, file, image_root=str(tmp_path), size=(30, 50))
    assert (data["images"][0]["height"], data["images"][0]["width"]) == (40, 60)


def test_pictures_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for name in ("shot 10.png", "shot 9.png", "shot 8.png"):
        cv2.imwrite(str(tmp_path / "clip" / name), np.zeros((48, 64, 3), np.uint8))
    options = {"frames": "{video}/*.png", "image_root": str(tmp_path)}
    file = CvatFile([CvatTask(3)], [_track(frames=(2,))])
    assert _frames_of(_convert(tmp_path, file, **options)[0]) == ["clip/shot 10.png"]
    # More pictures than frames in the task: all frames of the video are there.
    file = CvatFile([CvatTask(2, start=1)], [_track(frames=(1,))])
    assert _frames_of(_convert(tmp_path, file, **options)[0]) == ["clip/shot 9.png"]
    file = CvatFile([CvatTask(4)], [_track()])
    with pytest.raises(DataError, match=r"video clip: 3 pictures are like .*/\*.png, but .* 4 "):
        _convert(tmp_path, file, **options)
    with pytest.raises(DataError, match=r"'\{video\}/\*.png' has a \*, .* give --image-root"):
        _convert(tmp_path, file, frames="{video}/*.png")


def test_training_frames(tmp_path: Path) -> None:
    task = CvatTask(8, more="<deleted_frames>1</deleted_frames>")
    data, _ = _convert(tmp_path, CvatFile([task], [_track()]), train_every=3)
    assert [i["frame_id"] for i in data["images"] if i["is_vid_train_frame"]] == [0, 4, 7]
    data, _ = _convert(tmp_path, CvatFile([task], [_track()]))
    assert "is_vid_train_frame" not in data["images"][0]


def test_split_by_video(tmp_path: Path) -> None:
    paths = []
    for number in range(10):
        label = "cat" if number else "dog"
        file = CvatFile([CvatTask(2, source=f"v{number}.mp4")], [_track(label)])
        paths.append(file.write(tmp_path / f"{number}.zip"))
    data, _ = convert_cvat(paths)
    train, val = split_videos(data, fraction=0.2)
    assert [v["name"] for v in val["videos"]] == ["v2", "v7"]
    assert len(train["images"]) == 16 and len(val["images"]) == 4
    for part in (train, val):
        assert part["categories"] == data["categories"]
        ids = {image["id"] for image in part["images"]}
        assert {a["image_id"] for a in part["annotations"]} <= ids
        (tmp_path / "part.json").write_text(json.dumps(part))
        assert len(load_coco_vid(str(tmp_path / "part.json"), "")) == len(part["images"])
    train, val = split_videos(data, ["v0"])
    assert [v["name"] for v in val["videos"]] == ["v0"] and len(train["videos"]) == 9
    for fraction, count in ((0.01, 1), (0.5, 5), (0.99, 9)):
        assert len(split_videos(data, fraction=fraction)[1]["videos"]) == count
    with pytest.raises(DataError, match="--val-videos: no video is called 'v10'; there are v0, v1"):
        split_videos(data, ["v10"])
    with pytest.raises(DataError, match=r"the training videos \(none\) have no object; choose"):
        split_videos(data, [f"v{number}" for number in range(10)])
    with pytest.raises(DataError, match="a split needs at least two videos"):
        split_videos(convert_cvat(paths[:1])[0])


_GOOD = CvatFile([CvatTask(4)], [_track()]).xml()
_BAD = {
    "export 'CVAT for images'": (
        CvatFile([CvatTask(4)], []).xml().replace("</meta>", "</meta><image id='0'></image>")
    ),
    "begins with <html>, so it is no file of CVAT's": "<html></html>",
    "not a whole CVAT file (no element found": "",
    "not a whole CVAT file (unclosed token": _GOOD[:-30],
    "not a whole CVAT file (EntitiesForbidden": (
        '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>'
    ),
    "no <meta>, so no frame numbers": "<annotations></annotations>",
    "no <meta> before the tracks": "<annotations><track/></annotations>",
    "<meta> has no <task>, <job> or <project>": "<annotations><meta/></annotations>",
    "<task> 7: <size> is None, not a number": _GOOD.replace("size>4<", "sizes>4<").replace(
        "4</size>", "4</sizes>"
    ),
    "<task> 7: <size> is 'four', not a number": _GOOD.replace("<size>4", "<size>four"),
    "<task> 7 has 0 frames from number 0": _GOOD.replace("<size>4", "<size>0"),
    "with frame filter 'every=2'": _GOOD.replace("<frame_filter>", "<frame_filter>every=2"),
    "with frame filter 'step=0'": _GOOD.replace("<frame_filter>", "<frame_filter>step=0"),
    "<task> 7: frames of 0x48 pixels": _GOOD.replace("<width>64", "<width>0"),
    "a <label> without a <name>": _GOOD.replace("<name>cat</name>", "<name/>"),
    "track 0 has no label": _GOOD.replace('label="cat"', ""),
    "a track is labelled 'cow', which <labels> does not list": _GOOD.replace(
        'label="cat"', 'label="cow"'
    ),
    "track 0: a box has no frame": _GOOD.replace('frame="0"', "", 1),
    "track 0: a box has no ybr": _GOOD.replace('ybr="28.0"', ""),
    "track 0: a box has no proper numbers (could not convert": _GOOD.replace("28.0", "a"),
    "track 0: a box has no proper numbers (corners": _GOOD.replace("28.0", "nan"),
    "track 0, frame 0: a box with its right or lower side first": _GOOD.replace("28.0", "2"),
    "track 0 has a box in frame 9, but the frames of task 7 are 0 to 3;": _GOOD.replace(
        'frame="0"', 'frame="9"', 1
    ),
    "frames of task 7 are 0 to 6, every 2": CvatFile([CvatTask(4, step=2)], [_track()])
    .xml()
    .replace('frame="0"', 'frame="3"', 1),
    "track 0 is of task 9, but <meta> has 7": _GOOD.replace("<track ", '<track task_id="9" '),
    "two tasks have the same id": CvatFile([CvatTask(2), CvatTask(2)], [], project=True).xml(),
    f"<task> 7 would have {10**12} frames, which none has": _GOOD.replace(
        "<size>4", f"<size>{10**12}"
    ),
    "<task> 7: <size> is '" + "9" * 100 + "', not a number": _GOOD.replace(
        "<size>4", "<size>" + "9" * 5000
    ),
    "track 0: a box has no proper numbers (corners [-1e+308": _GOOD.replace(
        'xtl="10.0"', 'xtl="-1e308"'
    ).replace('xbr="30.0"', 'xbr="1e308"'),
    f"track 0 has a box in frame {10**12}, but the frames": _GOOD.replace(
        'frame="0"', f'frame="{10**12}"', 1
    ),
    "none of the 1 video(s) has a box of a class (cat, dog)": CvatFile([CvatTask(4)], []).xml(),
}


@pytest.mark.parametrize("message", _BAD)
def test_bad_files(tmp_path: Path, message: str) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text(_BAD[message])
    with pytest.raises(DataError) as raised:
        convert_cvat([path])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    if not message.startswith("none of"):
        assert str(raised.value).startswith(f"{path}: ")


def test_a_video_and_a_picture_beyond_measure(tmp_path: Path) -> None:
    # Few frames, but so far apart that the gaps between them can't be filled.
    far = CvatFile([CvatTask(3, step=10**9)], [_track()])
    with pytest.raises(DataError, match="video clip would have 2000000001 frames, which none has"):
        _convert(tmp_path, far, fill_gaps=True)
    wide = CvatFile([CvatTask(3, height_width=(48, 10**12))], [_track()])
    with pytest.raises(DataError, match=f"video clip: no frame has {10**12}x48 pixels; correct it"):
        _convert(tmp_path, wide)


def test_bad_places(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.xml")
    with pytest.raises(DataError, match=r"pipe.xml: a named pipe, not a file"):
        convert_cvat([tmp_path / "pipe.xml"])
    (tmp_path / "pipe.xml").unlink()
    with pytest.raises(DataError, match=r"none.zip: no such export of CVAT; check the path"):
        convert_cvat([tmp_path / "none.zip"])
    with pytest.raises(DataError, match=r"the folder holds no .xml or .zip; name the exports"):
        convert_cvat([tmp_path])
    empty = tmp_path / "empty.zip"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("images/frame_000000.png", b"")
    with pytest.raises(DataError, match=r"empty.zip: holds no annotations.xml; export it as"):
        convert_cvat([empty])
    good = CvatFile([CvatTask(4)], [_track()]).write(tmp_path / "good.zip")
    content = bytearray(good.read_bytes())
    content[60:70] = b"0123456789"
    good.write_bytes(content)
    with pytest.raises(DataError, match=r"good.zip/annotations.xml: cannot be read \("):
        convert_cvat([good])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": "{video}/frame.jpg"}, r"--frames .* gives all frames one name; put \{frame"),
        ({"frames": "{name}/{frame}.jpg"}, r"'name' is not understood; a pattern may have \{video"),
        ({"frames": "{frame:06x"}, "is not understood"),
        ({"clips": "{video}"}, "--clips .* does not end like a video file; write '{video}.mp4'"),
        ({"train_every": 0}, "--train-every 0: it must be at least 1"),
        ({"classes": ["a", "a"]}, "--classes names a class twice"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConversionOptions(**options)


_Boxes = dict[int, dict[int, tuple[int, int, int, int]]]
_HUNDREDTHS = st.tuples(
    st.integers(0, 3000), st.integers(0, 2000), st.integers(1, 3400), st.integers(1, 2800)
)


@settings(max_examples=60, deadline=None)
@given(
    # track -> frame -> x, y, width, height in hundredths of a pixel, inside 64 x 48
    st.dictionaries(
        st.integers(0, 3), st.dictionaries(st.integers(0, 9), _HUNDREDTHS, min_size=1), min_size=1
    ),
    st.integers(0, 50),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
)
def test_round_trip(boxes: _Boxes, start: int, step: int, fill: bool, zipped: bool) -> None:
    """Boxes -> what CVAT writes of them -> CocoVID gives the same tracks of the same boxes."""
    tracks = []
    expected: Counter[frozenset] = Counter()
    for number, by_frame in boxes.items():
        entries = []
        for k in range(10):
            if k in by_frame:
                x, y, width, height = (value / 100 for value in by_frame[k])
                corners = (x, y, round(x + width, 2), round(y + height, 2))
                entries.append((start + k * step, corners, {"occluded": k % 2}))
            elif k - 1 in by_frame:
                entries.append((start + k * step, entries[-1][1], _OUT))
        tracks.append(CvatTrack(f"class {number % 2}", entries))
        expected[
            frozenset(
                (k * step if fill else k, box, number % 2 + 1, k % 2 == 1)
                for k, box in by_frame.items()
            )
        ] += 1
    file = CvatFile([CvatTask(10, start=start, step=step)], tracks, labels=("class 0", "class 1"))
    with tempfile.TemporaryDirectory() as folder:
        path = file.write(Path(folder) / ("a.zip" if zipped else "a.xml"))
        data, counts = convert_cvat([path], ConversionOptions(fill_gaps=fill))
        json_file = Path(folder) / "made.json"
        json_file.write_text(json.dumps(data))
        records = load_coco_vid(str(json_file), folder)
        report = check_dataset(json_file, folder)
    assert {problem.kind for problem in report.problems} <= {"missing files"}

    made = defaultdict(set)
    for annotation, frame_id in zip(data["annotations"], _frames_of(data, "frame_id"), strict=True):
        box = tuple(round(value * 100) for value in annotation["bbox"])
        made[annotation["instance_id"]].add(
            (frame_id, box, annotation["category_id"], annotation["occluded"])
        )
    assert Counter(map(frozenset, made.values())) == expected
    assert counts.tracks == len(boxes)
    assert counts.objects == len(data["annotations"]) == sum(map(len, boxes.values()))
    assert len(records) == (9 * step + 1 if fill else 10)
    assert sum(record["annotated"] for record in records) == 10
