"""Sample detections as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from made_datasets import MadeDataset, MakeDataset

from clab_d2.evaluation.pictures import LONGEST_SIDE, DetectionPictures


def found(size: tuple[int, int], score: float = 0.9) -> Instances:
    """One detection in the middle of a frame."""
    height, width = size
    box = torch.tensor([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]])
    return Instances(
        size,
        pred_boxes=Boxes(box),
        scores=torch.tensor([score]),
        pred_classes=torch.tensor([0]),
    )


def pictures(
    dataset: MadeDataset, number: int, order: slice = slice(None), size: tuple[int, int] = (24, 32)
) -> dict[str, np.ndarray]:
    """Tag -> picture (3, H, W) of an evaluation of all frames, in some order."""
    evaluator = DetectionPictures(dataset.name, number)
    evaluator.reset()
    for image in dataset.data["images"][order]:
        clip: dict[str, Any] = {
            "image_id": image["id"],
            "file_name": str(dataset.root / image["file_name"]),
        }
        evaluator.process([clip], [{"instances": found(size)}])
    with EventStorage(3) as storage:
        assert evaluator.evaluate() == {}
        assert {iteration for _, _, iteration in storage._vis_data} <= {3}
        return {tag: picture for tag, picture, _ in storage._vis_data}


def test_as_many_as_asked_for_and_always_the_same(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((9, 8, 7))
    drawn = pictures(dataset, 5)
    assert len(drawn) == 5
    assert list(pictures(dataset, 5, slice(None, None, -1))) == list(drawn)
    assert set(drawn) < set(pictures(dataset, 9))
    assert len(pictures(dataset, 100)) == 24


def test_detections_are_drawn_on_the_frame(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((3,))
    tags = [f"detections/{dataset.name}/{image['id']}" for image in dataset.data["images"]]
    drawn = pictures(dataset, 3)
    assert list(drawn) == tags
    for number, picture in enumerate(drawn.values()):
        assert picture.dtype == np.uint8 and picture.shape[0] == 3
        # The frame's own colour in a corner: red tells the video, green the frame.
        assert picture[:, -1, -1].tolist() == [1, number, 0]
        assert len(np.unique(picture.reshape(3, -1), axis=1).T) > 3


def test_large_frames_are_made_smaller(make_dataset: MakeDataset) -> None:
    size = (900, 1600)
    dataset = make_dataset((1,), size=size)
    (picture,) = pictures(dataset, 1, size=size).values()
    assert max(picture.shape) == LONGEST_SIDE


def test_unreadable_frame_is_left_out(
    make_dataset: MakeDataset, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_dataset((2,))
    (dataset.root / dataset.data["images"][0]["file_name"]).unlink()
    assert len(pictures(dataset, 2)) == 1
    assert "No picture of this frame" in caplog.text


def test_pictures_go_to_services_as_well(make_dataset: MakeDataset) -> None:
    dataset = make_dataset((1,))
    (image,) = dataset.data["images"]
    sent: list[tuple[str, tuple[int, ...], int]] = []
    evaluator = DetectionPictures(
        dataset.name, 1, [lambda name, picture, at: sent.append((name, picture.shape, at))]
    )
    evaluator.reset()
    path = str(dataset.root / image["file_name"])
    evaluator.process(
        [{"image_id": image["id"], "file_name": path}], [{"instances": found((24, 32))}]
    )
    with EventStorage(3):
        evaluator.evaluate()
    ((name, shape, iteration),) = sent
    assert name == f"detections/{dataset.name}/{image['id']}"
    assert shape[2] == 3 and iteration == 3
