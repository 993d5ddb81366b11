from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clab_d2.evaluation.motion_iou import (
    FAST,
    MEDIUM,
    SLOW,
    UNKNOWN,
    motion_iou_from_tracks,
    motion_speed,
)


def _slow_reference(video, instance, frame, boxes, window):
    """The definition, word for word, box by box."""

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        inter = max(width, 0) * max(height, 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
        return inter / union

    result = []
    for i in range(len(boxes)):
        others = [
            iou(boxes[i], boxes[j])
            for j in range(len(boxes))
            if video[i] == video[j]
            and instance[i] == instance[j]
            and 0 < abs(frame[i] - frame[j]) <= window
        ]
        result.append(sum(others) / len(others) if others else 1.0)
    return result


def test_box_that_shifts_by_its_half_each_frame():
    # 20 wide, 10 a frame: neighbours overlap in 1/3, the next ones touch only.
    boxes = [[10 * t, 0, 10 * t + 20, 10] for t in range(3)]
    result = motion_iou_from_tracks([7] * 3, [0] * 3, range(3), boxes)
    assert result == pytest.approx([1 / 6, 1 / 3, 1 / 6])


def test_still_object_and_object_seen_once():
    boxes = [[0, 0, 10, 10]] * 3 + [[5, 5, 9, 9]]
    result = motion_iou_from_tracks([1] * 4, [0, 0, 0, 1], [0, 1, 2, 0], boxes)
    assert result.tolist() == [1.0, 1.0, 1.0, 1.0]


def test_only_frames_within_the_window_count():
    boxes = [[0, 0, 10, 10], [100, 0, 110, 10], [0, 0, 10, 10]]
    near = motion_iou_from_tracks([1] * 3, [0] * 3, [0, 10, 21], boxes)
    assert near.tolist() == [0.0, 0.0, 1.0]  # 10 frames away is in, 11 is out


def test_same_instance_number_in_another_video_is_another_object():
    boxes = [[0, 0, 10, 10], [100, 0, 110, 10]]
    assert motion_iou_from_tracks([1, 2], [0, 0], [0, 1], boxes).tolist() == [1.0, 1.0]


def test_two_boxes_of_one_object_in_one_frame_do_not_compare():
    boxes = [[0, 0, 10, 10], [50, 0, 60, 10]]
    assert motion_iou_from_tracks([1, 1], [0, 0], [3, 3], boxes).tolist() == [1.0, 1.0]


def test_nothing():
    assert motion_iou_from_tracks([], [], [], []).shape == (0,)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 30)),
        unique=True,
        max_size=60,
    ),
    st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(tracks, seed):
    rng = np.random.default_rng(seed)
    video, instance, frame = np.array(tracks, dtype=np.int64).reshape(-1, 3).T
    corner = rng.integers(0, 8, (len(tracks), 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 20, (len(tracks), 2))], axis=1)
    result = motion_iou_from_tracks(video, instance, frame, boxes)
    assert result == pytest.approx(_slow_reference(video, instance, frame, boxes.tolist(), 10))


def test_speed_borders():
    speeds = motion_speed(np.array([0.0, 0.699, 0.7, 0.8, 0.9, 0.901, 1.0]))
    assert speeds.tolist() == [FAST, FAST, MEDIUM, MEDIUM, MEDIUM, SLOW, SLOW]


def test_an_unknown_motion_iou_is_no_speed():
    speed = motion_speed(np.array([np.nan, 1.0, np.nan, 0.0]))
    assert speed.tolist() == [UNKNOWN, SLOW, UNKNOWN, FAST]
