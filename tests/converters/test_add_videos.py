"""Videos by file names: which images belong together, and in which order."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_modules import import_tool

from clab_d2.converters.add_videos import add_videos
from clab_d2.errors import DataError

Json = dict[str, Any]


def stills(*names: str) -> Json:
    images = [
        {"id": number, "file_name": name, "width": 64, "height": 48}
        for number, name in enumerate(names, start=10)
    ]
    boxes = [
        {"id": n, "image_id": image["id"], "category_id": 1, "bbox": [1, 2, 30, 20], "area": 600}
        for n, image in enumerate(images, start=1)
    ]
    return {"categories": [{"id": 1, "name": "cat"}], "images": images, "annotations": boxes}


def frames_of(data: Json) -> dict[str, list[str]]:
    """Video name -> file names by frame_id; "" -> the stills."""
    found: dict[str, list[str]] = {}
    names = {video["id"]: video["name"] for video in data["videos"]}
    for image in sorted(data["images"], key=lambda image: image.get("frame_id", 0)):
        found.setdefault(names.get(image.get("video_id"), ""), []).append(image["file_name"])
    return found


def test_names_tell_videos_and_order() -> None:
    data = stills(
        "garden/10.jpg", "garden/2.jpg", "street/cam_0010.png", "street/cam_0005.png", "logo.png",
        "yard_mp4-1_jpg.rf.00ff.jpg", "yard_mp4-0_jpg.rf.aa.jpg", "b.mp4#7", "b.mp4#3", "7.jpg",
    )  # fmt: skip
    before = copy.deepcopy(data)
    found = add_videos(data)
    assert data == before
    assert frames_of(found) == {
        "garden": ["garden/2.jpg", "garden/10.jpg"],
        "street/cam_": ["street/cam_0005.png", "street/cam_0010.png"],
        "yard_mp4-": ["yard_mp4-0_jpg.rf.aa.jpg", "yard_mp4-1_jpg.rf.00ff.jpg"],
        "b.mp4": ["b.mp4#3", "b.mp4#7"],
        "": ["logo.png", "7.jpg"],
    }
    assert [image["id"] for image in found["images"]] == [image["id"] for image in data["images"]]
    assert found["annotations"] == data["annotations"]


@given(st.lists(st.tuples(st.sampled_from(["a/", "b/x", "b/y"]), st.integers(0, 99)), unique=True))
def test_frames_rise_from_0_in_each_video(places: list[tuple[str, int]]) -> None:
    data = stills(*(f"{start}{number:03}.jpg" for start, number in places), "z/1.jpg", "z/2.jpg")
    found = add_videos(data)
    for name, files in frames_of(found).items():
        numbers = [int(re.search(r"\d+", file)[0]) for file in files]
        if name:
            assert numbers == sorted(numbers) and len(files) > 1
    by_video: dict[int, list[int]] = {}
    for image in found["images"]:
        if "video_id" in image:
            by_video.setdefault(image["video_id"], []).append(image["frame_id"])
    assert all(sorted(frames) == list(range(len(frames))) for frames in by_video.values())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("cat.jpg", "dog.jpg"), "no two images are frames of one video"),
        (("a1.jpg", "b1.jpg"), "no two images are frames of one video"),
        (("9" * 6000 + ".jpg", "a.jpg"), "no two images are frames of one video"),
        (("a/1.jpg", "a/01.jpg"), "a/1.jpg and a/01.jpg are both frame 1 of 'a'; keep one"),
    ],
)
def test_names_that_tell_no_videos(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        add_videos(stills(*names))


def test_the_checker_writes_and_checks_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = import_tool("check_dataset")
    source, output = tmp_path / "stills.json", tmp_path / "videos.json"
    source.write_text(json.dumps(stills("a/1.jpg", "a/2.jpg", "a/5.jpg")))
    arguments = ["--annotations", str(source), "--image-root", str(tmp_path)]
    tool.main(arguments)
    assert "--add-videos" in capsys.readouterr().out, "the remedy is named where it is needed"
    assert tool.main([*arguments, "--add-videos", str(output)]) == 1  # there are no pictures
    said = capsys.readouterr().out
    assert f"{output}: written, 1 videos, 3 images (3 annotated), 3 objects" in said
    assert "no image has a video_id" not in said
    assert frames_of(json.loads(output.read_text())) == {"a": ["a/1.jpg", "a/2.jpg", "a/5.jpg"]}
    # once more, of what has videos now
    again = ["--annotations", str(output), "--image-root", str(tmp_path)]
    assert tool.main([*again, "--add-videos", str(tmp_path / "more.json")]) == 2
    assert f"error: {output}: has videos already" in capsys.readouterr().err
    for wrong in (["--dataset", "mini_vid_val"], ["--annotations", str(output)]):
        with pytest.raises(SystemExit):
            tool.main([*wrong, "--image-root", str(tmp_path), "--add-videos", str(output)])
