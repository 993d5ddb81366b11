from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_detections import detections_of, iou, rows_strategy

from clab_d2.errors import ConfigError
from clab_d2.postprocessing import SmoothScores, VideoDetections, smooth_scores


def plain_smoothing(detections: VideoDetections, link_iou: float, window: int) -> list[float]:
    """The same, detection by detection."""
    count = len(detections.frame)

    def partner(row: int, step: int) -> int | None:
        """What overlaps a detection most among those of its class in a neighbouring frame."""
        others = [
            other
            for other in range(count)
            if detections.frame[other] == detections.frame[row] + step
            and detections.class_index[other] == detections.class_index[row]
            and iou(detections.box[row], detections.box[other]) > link_iou
        ]
        return max(others, key=lambda o: iou(detections.box[row], detections.box[o]), default=None)

    def walk(row: int, step: int) -> list[int]:
        seen: list[int] = []
        while len(seen) < window // 2:
            other = partner(row, step)
            if other is None or partner(other, -step) != row:
                break
            seen.append(other)
            row = other
        return seen

    return [
        float(np.mean(detections.score[[row, *walk(row, 1), *walk(row, -1)]]))
        for row in range(count)
    ]


@settings(max_examples=150, deadline=None)
@given(
    rows=rows_strategy,
    link_iou=st.sampled_from([0.0, 0.3, 0.7]),
    window=st.sampled_from([1, 3, 5, 9]),
)
def test_equals_the_plain_way(rows, link_iou, window) -> None:
    detections = detections_of(rows)
    rescored = smooth_scores(detections, link_iou, window)
    assert rescored.rows.tolist() == list(range(len(rows)))
    expected = plain_smoothing(detections, link_iou, window)
    assert rescored.score.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_dip_is_filled_and_a_track_s_end_is_its_own() -> None:
    still = (0, 0, 10, 10)
    detections = detections_of([(f, still, s, 0) for f, s in enumerate((0.9, 0.3, 0.9, 0.6))])
    scores = smooth_scores(detections, window=3).score.tolist()
    assert scores == pytest.approx([0.6, 0.7, 0.6, 0.75])


@pytest.mark.parametrize("window", [0, -3, 4])
def test_a_window_is_odd(window) -> None:
    with pytest.raises(
        ConfigError, match=f"TEST.POSTPROCESS.WINDOW is {window}; it must be an odd"
    ):
        SmoothScores(window=window)
