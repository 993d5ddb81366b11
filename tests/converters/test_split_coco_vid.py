"""Splitting CocoVID files: nothing annotated on both sides, nothing lost, speeds kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.converters.coco_vid_parts import read_coco_vid
from clab_d2.converters.split_coco_vid import split_by_time, split_by_video
from clab_d2.errors import ConfigError, DataError
from clab_d2.evaluation import GroundTruth

Json = dict[str, Any]


def make(videos: list[list[bool]], stills: int = 0) -> Json:
    """A file of videos, given as which of their frames are annotated, and stills.

    Every frame that is annotated has two objects of a track each, and a crowd.
    """
    data: Json = {
        "info": {"year": 2026},
        "categories": [{"id": 5, "name": "cat"}],
        "videos": [{"id": v, "name": f"v{v}"} for v in range(1, len(videos) + 1)],
        "images": [],
        "annotations": [],
    }
    places = [(v, f, known) for v, frames in enumerate(videos, 1) for f, known in enumerate(frames)]
    for video, frame, known in [*places, *[(None, None, True)] * stills]:
        image = {"id": 10 + len(data["images"]), "file_name": "x", "width": 99, "height": 99}
        if video is not None:
            image |= {"video_id": video, "frame_id": frame, "annotated": known}
        data["images"].append(image)
        for track in (0, 1, 2) if known else ():
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": 5,
                    "bbox": [3 * (frame or 0) * track, 1, 20, 30],
                    "iscrowd": int(track == 2),
                    "instance_id": track,
                }
            )
    return data


FRAMES = st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5)


def annotated_ids(data: Json) -> set[int]:
    return {i["id"] for i in data["images"] if i.get("annotated", True)}


@settings(max_examples=60, deadline=None)
@given(FRAMES, st.integers(0, 2), st.floats(0.01, 0.99))
def test_by_time(videos: list[list[bool]], stills: int, share: float) -> None:
    data = make(videos, stills)
    before = copy.deepcopy(data)
    possible = max(map(sum, videos)) > 1
    if not possible:
        with pytest.raises(DataError, match="would have no object"):
            split_by_time(data, share)
        return
    train, val = split_by_time(data, share)
    assert data == before
    for part in (train, val):
        assert [i["id"] for i in part["images"]] == [i["id"] for i in data["images"]]
        assert {k: part[k] for k in ("categories", "videos", "info")} == {
            k: data[k] for k in ("categories", "videos", "info")
        }
        assert {a["image_id"] for a in part["annotations"]} <= annotated_ids(part)
    assert not annotated_ids(train) & annotated_ids(val)
    assert annotated_ids(train) | annotated_ids(val) == annotated_ids(data)
    ids = [a["id"] for part in (train, val) for a in part["annotations"]]
    assert sorted(ids) == [a["id"] for a in data["annotations"]]
    for number, frames in enumerate(videos, 1):
        of = [
            [
                image["frame_id"]
                for image in part["images"]
                if image.get("video_id") == number and image["annotated"]
            ]
            for part in (train, val)
        ]
        if sum(frames) > 1:
            assert max(of[0]) < min(of[1])
            assert abs(len(of[1]) - share * sum(frames)) <= 0.5 + 1e-6 or 1 in map(len, of)
        else:
            assert not of[1]


@settings(max_examples=60, deadline=None)
@given(FRAMES, st.integers(0, 2), st.floats(0.01, 0.99), st.none() | st.integers(0, 9))
def test_by_video(videos: list[list[bool]], stills: int, share: float, seed: int | None) -> None:
    data = make(videos, stills)
    try:
        train, val = split_by_video(data, share, seed=seed)
    except DataError as error:
        empty = sum(not any(frames) for frames in videos)
        assert len(videos) + stills == 1 or (empty and "no object" in str(error))
        return
    assert (train, val) == split_by_video(data, share, seed=seed)
    for key in ("videos", "images", "annotations"):
        ids = [[record["id"] for record in part[key]] for part in (train, val)]
        assert sorted(ids[0] + ids[1]) == [record["id"] for record in data[key]]
    for part in (train, val):
        assert part["categories"] == data["categories"]
        assert {v["id"] for v in part["videos"]} == {
            i["video_id"] for i in part["images"] if "video_id" in i
        }
        assert {a["image_id"] for a in part["annotations"]} <= {i["id"] for i in part["images"]}
    count = len(val["videos"]) + sum("video_id" not in i for i in val["images"])
    assert count == min(max(round(share * (len(videos) + stills)), 1), len(videos) + stills - 1)


def test_named_videos_and_seeds() -> None:
    data = make([[True, False]] * 8)
    train, val = split_by_video(data, names=["v3", "v8"])
    assert [v["name"] for v in val["videos"]] == ["v3", "v8"] and len(train["images"]) == 12
    drawn = {
        tuple(v["id"] for v in split_by_video(data, 0.25, seed=seed)[1]["videos"])
        for seed in range(8)
    }
    assert len(drawn) > 1
    with pytest.raises(DataError, match="no video is called 'v9'; there are v1, v2"):
        split_by_video(data, names=["v9"])
    with pytest.raises(DataError, match="training part would have no object"):
        split_by_video(data, names=[f"v{n}" for n in range(1, 9)])
    with pytest.raises(ConfigError, match="is 1; it must be between 0 and 1"):
        split_by_time(data, 1.0)


def test_speeds_stay_what_they_were(tmp_path: Path) -> None:
    """An object next to the split has lost half of the boxes that its speed is told by."""
    data = make([[True] * 8, [True] * 5])
    data["annotations"][0]["motion_iou"] = 0.25

    def speeds(part: Json) -> dict[tuple[int, tuple[float, ...]], float]:
        file = tmp_path / "part.json"
        file.write_text(json.dumps(part))
        truth = GroundTruth.from_file(file)
        images = truth.image_ids[truth.image].tolist()
        keys = zip(images, map(tuple, truth.box.tolist()), truth.crowd.tolist(), strict=True)
        return dict(zip(keys, truth.motion_iou.tolist(), strict=True))

    whole = speeds(data)
    parts = split_by_time(data, 0.4)
    assert speeds(parts[0]) | speeds(parts[1]) == pytest.approx(whole)
    assert len(np.unique(list(whole.values()))) > 2
    for part in parts:
        for annotation in part["annotations"]:
            del annotation["motion_iou"]
    assert speeds(parts[0]) | speeds(parts[1]) != pytest.approx(whole)


def test_what_is_read_could_be_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    data = make([[True, True]])
    file.write_text(json.dumps(data))
    assert read_coco_vid(str(file)) == data
    data["annotations"][0]["image_id"] = 999
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match="is of image 999"):
        read_coco_vid(str(file))


def test_stills_have_no_time_to_split_by() -> None:
    with pytest.raises(DataError, match="by time needs videos, and no image has a video_id"):
        split_by_time(make([], stills=4))
    train, val = split_by_video(make([], stills=4), 0.25)
    assert (len(train["images"]), len(val["images"])) == (3, 1)
