"""A small dataset that several tests read."""

from __future__ import annotations

from typing import Any

import pytest

from clab_d2.evaluation import GroundTruth


@pytest.fixture
def truth_json() -> dict[str, Any]:
    return {
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "videos": [{"id": 1, "name": "a"}],
        "images": [
            {"id": 20, "video_id": 1, "frame_id": 1},
            {"id": 10, "video_id": 1, "frame_id": 0},
            {"id": 30, "video_id": 1, "frame_id": 2, "annotated": False},
            {"id": 40, "file_name": "still.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 5, "bbox": [0, 0, 10, 10], "instance_id": 1},
            {"id": 2, "image_id": 20, "category_id": 5, "bbox": [5, 0, 10, 10], "instance_id": 1},
            {"id": 3, "image_id": 20, "category_id": 2, "bbox": [50, 0, 10, 10], "motion_iou": 0.8},
            {"id": 4, "image_id": 30, "category_id": 2, "bbox": [50, 0, 10, 10]},
            {"id": 5, "image_id": 40, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 7,
             "iscrowd": 1},
        ],
    }  # fmt: skip


@pytest.fixture
def truth(truth_json: dict[str, Any]) -> GroundTruth:
    return GroundTruth.from_json(truth_json, "truth.json")
