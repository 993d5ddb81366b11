from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image

from clab_d2.runtime.detections import greedy_nms, scale_detections, select_detections


@pytest.mark.parametrize("own_boxes", [True, False])
@pytest.mark.parametrize("most", [7, -1, 100])
def test_detections_are_detectron2s(own_boxes: bool, most: int) -> None:
    rng = np.random.default_rng(3)
    corners = rng.uniform(-20, 90, (60, 4 if own_boxes else 1, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(axis=2), corners.max(axis=2)], axis=2)
    scores = rng.uniform(0, 1, (60, 4)).astype(np.float32)
    boxes[5, 0, 1], scores[7, 2] = np.nan, np.inf
    background = np.zeros((60, 1), np.float32)
    expected, _ = fast_rcnn_inference_single_image(
        torch.from_numpy(boxes.reshape(60, -1)),
        torch.from_numpy(np.concatenate([scores, background], axis=1)),
        (64, 80), 0.3, 0.4, most,
    )  # fmt: skip
    ours = select_detections(boxes, scores, (64, 80), 0.3, 0.4, most)
    assert len(ours) == len(expected) > 5
    assert np.array_equal(ours.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert np.array_equal(ours.scores, expected.scores)
    assert np.array_equal(ours.pred_classes, expected.pred_classes)
    scaled, as_expected = scale_detections(ours, (100, 90)), detector_postprocess(expected, 100, 90)
    assert len(scaled) == len(as_expected)
    np.testing.assert_allclose(
        scaled.pred_boxes.tensor, as_expected.pred_boxes.tensor, rtol=1e-6, atol=1e-5
    )


def test_nothing_and_boxes_without_extent() -> None:
    none = np.zeros((0, 4), np.float32)
    assert len(greedy_nms(none, np.zeros(0, np.int64), 0.5)) == 0
    points = np.ones((3, 4), np.float32)
    assert greedy_nms(points, np.zeros(3, np.int64), 0.5).tolist() == [0, 1, 2]
    empty = select_detections(none[:, None], np.zeros((0, 2), np.float32), (9, 9), 0.5, 0.5, 9)
    assert len(empty) == 0 and empty.pred_boxes.tensor.shape == (0, 4)
