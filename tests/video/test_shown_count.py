from __future__ import annotations

import numpy as np
import pytest

from clab_d2.runtime.instances import ArrayBoxes, ArrayInstances
from clab_d2.video import FrameResult
from clab_d2.video.shown_count import ShownCount


def count_of(*frames: list[float], score_threshold: float = 0.5) -> ShownCount:
    """Of frames by the scores of their detections."""
    count = ShownCount(score_threshold)
    for index, scores in enumerate(frames):
        found = ArrayInstances(
            (8, 8),
            pred_boxes=ArrayBoxes(np.zeros((len(scores), 4))),
            scores=np.array(scores, np.float32),
            pred_classes=np.zeros(len(scores), np.int64),
        )
        count.add(FrameResult(np.zeros((8, 8, 3), np.uint8), index, None, found, ["thing"]))
    return count


def test_those_shown_are_counted() -> None:
    count = count_of([0.9, 0.5, 0.1], [], [0.7])
    assert (count.shown, count.found, count.best) == (3, 4, pytest.approx(0.9))
    assert count.summary() == "3 detections of at least 0.5"


def test_where_none_is_shown_the_remedy_is_told() -> None:
    assert count_of([0.02], [0.314, 0.1]).summary() == (
        "no detection of at least 0.5, the best has 0.314: lower --score-threshold to see it"
    )
    assert count_of([0.02], score_threshold=0.01).shown == 1
    assert "no detection of any score" in count_of([], []).summary()
