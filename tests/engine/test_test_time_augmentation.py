"""Views of a video: each with a memory of its own, merged in the frame as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from made_clips import assert_same, build, test_clips

from clab_d2 import get_clab_cfg
from clab_d2.data.clip_augmentation import ClipTransform
from clab_d2.engine.test_time_augmentation import (
    TestTimeAugmentation,
    with_test_time_augmentation,
)
from clab_d2.errors import ConfigError


@pytest.fixture
def model(repo_root):
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(repo_root / "configs/quick_schedules/clab_quick.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return build(cfg).eval()


def view(flip: str = "none") -> ClipTransform:
    return ClipTransform(0, 999, "opencv", flip)


def test_one_view_that_changes_nothing_is_the_model(model) -> None:
    augmented = TestTimeAugmentation(model, [view()], 0.5, 100)
    clips = test_clips(1, 5)
    merged = [augmented([clip])[0] for clip in clips]
    for clip, result in zip(clips, merged, strict=True):
        assert_same(model([clip])[0], result)


def test_a_mirrored_view_finds_the_same_in_a_mirrored_video(model) -> None:
    clips = test_clips(1, 4)
    mirrored = [
        {**clip, "images": {f: image.flip(2) for f, image in clip["images"].items()}}
        for clip in clips
    ]
    augmented = TestTimeAugmentation(model, [view("horizontal")], 0.5, 100)
    for clip, other in zip(clips, mirrored, strict=True):
        (left,), (right,) = augmented([other]), model([clip])
        boxes = right["instances"].pred_boxes.tensor
        width = clip["width"]
        expected = torch.stack(
            [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1
        )
        found = left["instances"].pred_boxes.tensor
        torch.testing.assert_close(left["instances"].scores, right["instances"].scores)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


class Stub(torch.nn.Module):
    """Detects what it is told, one list a view."""

    def __init__(self, boxes_of_views: list[list[list[float]]]) -> None:
        super().__init__()
        self.calls = iter(boxes_of_views)
        self.shapes: list[tuple[int, ...]] = []
        self.memory: Any = None

    def inference(self, clips: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        (clip,) = clips
        self.shapes.append(tuple(clip["images"][0].shape))
        boxes = torch.tensor(next(self.calls)).reshape(-1, 5)
        instances = Instances(
            (clip["height"], clip["width"]),
            pred_boxes=Boxes(boxes[:, :4]),
            scores=boxes[:, 4],
            pred_classes=torch.zeros(len(boxes), dtype=torch.long),
        )
        return [{"instances": instances}]


def test_views_are_merged_by_score() -> None:
    cfg = get_clab_cfg()
    cfg.TEST.AUG.ENABLED = True
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (20, 30), 100
    cfg.TEST.DETECTIONS_PER_IMAGE = 2
    found = [[0.0, 0, 10, 10, 0.6]], [[90.0, 0, 100, 10, 0.9]], [[50.0, 5, 60, 15, 0.5]], []
    stub = Stub(list(found))
    augmented = with_test_time_augmentation(stub, cfg)
    clip = {"images": {0: torch.zeros(3, 10, 20, dtype=torch.uint8), 1: None}, "frame_id": 0,
            "height": 50, "width": 100}  # fmt: skip
    (output,) = augmented([clip])
    assert stub.shapes == [(3, 20, 40)] * 2 + [(3, 30, 60)] * 2
    # The mirrored view's box lies on the first view's, and is surer.
    assert output["instances"].pred_boxes.tensor.tolist() == [[0, 0, 10, 10], [50, 5, 60, 15]]
    np.testing.assert_allclose(output["instances"].scores, [0.9, 0.5])


def test_switched_off_it_is_the_model_and_without_sizes_a_mistake(model) -> None:
    cfg = get_clab_cfg()
    assert with_test_time_augmentation(model, cfg) is model
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = True, ()
    with pytest.raises(ConfigError, match=r"TEST\.AUG\.MIN_SIZES is \[\]"):
        with_test_time_augmentation(model, cfg)
