"""What every post-processing holds to, those of tests/plugins among them."""

from __future__ import annotations

import numpy as np
import pytest
from registered import ours

from clab_d2.config import get_clab_cfg
from clab_d2.postprocessing import POSTPROCESSING_REGISTRY, PostProcessing, VideoDetections

NAMES = ours(POSTPROCESSING_REGISTRY)

each_part = pytest.mark.parametrize("name", NAMES)


def build(name: str) -> PostProcessing:
    return POSTPROCESSING_REGISTRY.get(name)(get_clab_cfg())


def made_detections(seed: int = 0) -> VideoDetections:
    """Five objects that move a little over eight frames, two classes at one place."""
    random = np.random.default_rng(seed)
    corner = np.array([[0, 0], [40, 0], [40, 2], [0, 50], [60, 50]], dtype=float)
    left_top = (corner[None] + np.arange(8)[:, None, None]).reshape(-1, 2)
    left_top += random.uniform(-1, 1, left_top.shape)
    return VideoDetections(
        frame=np.repeat(np.arange(8), 5),
        box=np.concatenate([left_top, left_top + 20], axis=1),
        score=random.uniform(0.05, 1, 40),
        class_index=np.tile([0, 0, 1, 1, 2], 8),
    )


def taken(detections: VideoDetections, rows: np.ndarray) -> VideoDetections:
    return VideoDetections(
        frame=detections.frame[rows],
        box=detections.box[rows],
        score=detections.score[rows],
        class_index=detections.class_index[rows],
    )


def scores_of_all(name: str, detections: VideoDetections) -> np.ndarray:
    """(N,) the new score of each detection, NaN for one that is dropped."""
    result = build(name)(detections)
    scores = np.full(len(detections.score), np.nan)
    scores[result.rows] = result.score
    return scores


@each_part
def test_keeps_rows_in_order_with_scores_from_0_to_1(name: str) -> None:
    detections = made_detections()
    result = build(name)(detections)
    assert len(result.rows) == len(result.score) > 0
    assert (np.diff(result.rows) > 0).all() and result.rows[-1] < len(detections.score)
    assert ((result.score >= 0) & (result.score <= 1)).all()


@each_part
def test_order_of_detections_means_nothing(name: str) -> None:
    detections = made_detections()
    order = np.random.default_rng(1).permutation(len(detections.score))
    expected = scores_of_all(name, detections)[order]
    np.testing.assert_allclose(scores_of_all(name, taken(detections, order)), expected)


@each_part
def test_detections_given_stay_as_they_are(name: str) -> None:
    detections, same = made_detections(), made_detections()
    build(name)(detections)
    np.testing.assert_array_equal(detections.score, same.score)
    np.testing.assert_array_equal(detections.box, same.box)


@each_part
@pytest.mark.parametrize("number", [0, 1])
def test_few_detections(name: str, number: int) -> None:
    result = build(name)(taken(made_detections(), np.arange(number)))
    assert len(result.rows) == len(result.score) == number


@each_part
def test_built_by_constructor_and_by_config_alike(name: str) -> None:
    detections = made_detections()
    by_constructor = POSTPROCESSING_REGISTRY.get(name)()(detections)
    np.testing.assert_array_equal(by_constructor.score, build(name)(detections).score)
