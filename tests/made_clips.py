"""Made-up clips for the model, and the small models that take them."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from clab_d2.data.reference_sampling import FixedStrideReferences
from clab_d2.data.reference_schedule import ReferenceSchedule
from clab_d2.modeling import TemporalRCNN


def build(cfg: CfgNode) -> TemporalRCNN:
    torch.manual_seed(0)
    return build_model(cfg)


def decisive(model: TemporalRCNN) -> TemporalRCNN:
    """The model with scores that differ: drawn as usual they nearly tie, and rounding, which
    differs from batch to batch, would choose between detections."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("objectness_logits.weight", "cls_score.weight")):
                weight.mul_(50)
    return model


def image(seed: int, size: tuple[int, int] = (64, 96)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)


def training_clip(number: int, size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 60.0, 44.0]])
    return {
        "images": {
            5: image(10 * number, size),
            3: image(10 * number + 1, size),
            8: image(10 * number + 2, size),
        },
        "instances": {
            5: Instances(
                size,
                gt_boxes=Boxes(boxes),
                gt_classes=torch.tensor([number % 3, 4]),
                gt_tracks=torch.tensor([0, 1]),
            )
        },
        "video_id": number,
        "frame_id": 5,
        "reference_frame_ids": [3, 8],
    }


def losses_of(model: TemporalRCNN, clips: list[dict], iteration: int = 0) -> dict[str, Tensor]:
    with EventStorage(iteration):
        return model(clips)


def test_clips(
    video: int, length: int, window: int = 2, size: tuple[int, int] = (64, 96)
) -> list[dict[str, Any]]:
    """A video as the loader gives it: references are the frames around, new ones come along."""
    schedule = ReferenceSchedule(FixedStrideReferences(2 * window), length)
    clips = []
    for frame in range(length):
        references, entering, kept = schedule.at(frame)
        clips.append(
            {
                "height": 2 * size[0],
                "width": 2 * size[1],
                "video_id": video,
                "frame_id": frame,
                "images": {i: image(100 * video + i, size) for i in entering},
                "reference_frame_ids": references,
                "kept_frame_ids": kept,
            }
        )
    return clips


test_clips.__test__ = False  # a helper, not a test


def assert_same(left: dict[str, Instances], right: dict[str, Instances]) -> None:
    left, right = left["instances"], right["instances"]
    assert len(left) == len(right) > 0
    torch.testing.assert_close(left.scores, right.scores)
    torch.testing.assert_close(left.pred_boxes.tensor, right.pred_boxes.tensor)
    assert left.pred_classes.tolist() == right.pred_classes.tolist()
