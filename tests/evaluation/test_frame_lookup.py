"""Detections in videos find the images of a dataset."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from clab_d2.errors import DataError
from clab_d2.evaluation import Detections, GroundTruth


def truth(videos: list[dict[str, Any]], images: list[dict[str, Any]]) -> GroundTruth:
    sized = [{"width": 64, "height": 48, **image} for image in images]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    content = {"videos": videos, "images": sized, "annotations": [], "categories": categories}
    return GroundTruth.from_json(content, "truth.json")


def found(tmp_path: Path, dataset: GroundTruth, *places: tuple[str, int]) -> list[int]:
    """Image ids of detections in these frames."""
    records = [
        {"image_id": 999, "category_id": 1, "category": "dog", "bbox": [1, 2, 3, 4], "score": 0.5,
         "video": video, "frame_id": frame}
        for video, frame in places
    ]  # fmt: skip
    path = tmp_path / "found.json"
    path.write_text(json.dumps(records))
    detections = Detections.from_file(path, dataset)
    assert all(dataset.class_names[index] == "dog" for index in detections.class_index)
    return dataset.image_ids[detections.image].tolist()


NAMED = truth(
    [{"id": 1, "name": "val/v1"}, {"id": 2, "name": "train/v1"}, {"id": 3, "name": "v2"}],
    [
        {"id": 10 * video + frame, "file_name": f"{video}/{frame}.jpg", "video_id": video,
         "frame_id": frame}
        for video in (1, 2, 3)
        for frame in range(3)
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    ("video", "expected"),
    [("val/v1", 12), ("/data/VID/val/v1", 12), ("data/train/v1.mp4", 22), ("v2.avi", 32),
     ("./v2", 32), ("a\\b\\v2.mp4", 32)],
)  # fmt: skip
def test_by_name(video: str, expected: int, tmp_path: Path) -> None:
    assert found(tmp_path, NAMED, (video, 2)) == [expected]


def test_by_frames_of_a_file(tmp_path: Path) -> None:
    """Two scenes of one clip, each a video of the dataset; its frames have the clip's numbers."""
    images = [
        {"id": number, "file_name": f"bikes.mp4#{number}", "video_id": 1 + number // 50,
         "frame_id": number % 50}
        for number in range(30, 70)
    ]  # fmt: skip
    dataset = truth([{"id": 1, "name": "scene1"}, {"id": 2, "name": "scene2"}], images)
    assert found(tmp_path, dataset, ("clips/bikes.mp4", 31), ("bikes", 60)) == [31, 60]
    clip = truth(
        [{"id": 1, "name": "street", "file": "2024/bikes.mp4"}],
        [{"id": 5, "file_name": "x.jpg", "video_id": 1, "frame_id": 0}],
    )
    assert found(tmp_path, clip, ("bikes.mp4", 0)) == [5]


def test_frames_that_the_truth_does_not_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path, NAMED, ("v2", 1), ("v2", 8), ("v2", 9)) == [31]
    assert "2 detections are in frames that truth.json does not have" in caplog.text


def test_unknown_and_ambiguous_videos(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'v3.mp4', and truth.json has no such video \(train/v1"):
        found(tmp_path, NAMED, ("v3.mp4", 0))
    with pytest.raises(DataError, match="more than one video that this may be"):
        found(tmp_path, NAMED, ("v1.mp4", 0))
    stills = truth([], [{"id": 1, "file_name": "a.jpg"}])
    with pytest.raises(DataError, match="none with frame numbers"):
        found(tmp_path, stills, ("a", 0))
