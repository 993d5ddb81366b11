"""Tracks that also go by what objects look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from clab_d2.errors import ConfigError
from clab_d2.video.appearance import LARGEST_DISTANCE, MOMENTUM, AppearanceIoU
from clab_d2.video.tracks import Tracker

IMAGE = np.zeros((100, 200, 3), np.uint8)
RED, BLUE = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def frame(*found: tuple[float, np.ndarray], score: float = 0.9) -> Instances:
    """Boxes of 20 x 20 pixels by their left edge, and how they look."""
    result = Instances((100, 200))
    boxes = torch.tensor([[x, 40.0, x + 20, 60] for x, _ in found])
    result.pred_boxes = Boxes(boxes.reshape(-1, 4))
    result.scores = torch.full((len(found),), score)
    result.pred_classes = torch.zeros(len(found), dtype=torch.int64)
    result.appearance = torch.tensor(np.array([look for _, look in found])).float().reshape(-1, 2)
    return result


def crossing() -> list[Instances]:
    """Red comes from the left, blue from the right; they meet in the middle and both turn round.

    By motion alone each goes on through the other, which is where the other one is.
    """
    frames = []
    for number in range(21):
        x = 40.0 + 3 * number if number <= 10 else 70.0 - 3 * (number - 10)
        frames.append(frame((x, RED), (142.0 - x, BLUE)))
    return frames


@pytest.mark.parametrize("method", ["bytetrack", "botsort"])
def test_looks_tell_apart_what_motion_does_not(method: str) -> None:
    ids = {}
    for appearance in (False, True):
        tracker = Tracker(method, 25.0, appearance)
        rows = [tracker.update(found, IMAGE).track_ids.tolist() for found in crossing()]
        assert rows[5] == [1, 2]
        ids[appearance] = rows[-1]
    assert ids == {False: [2, 1], True: [1, 2]}


def test_what_is_not_near_is_not_joined_however_alike() -> None:
    tracker = Tracker(appearance=True)
    for _ in range(4):
        tracker.update(frame((20.0, RED)), IMAGE)
    ids = [tracker.update(frame((150.0, RED)), IMAGE).track_ids.tolist() for _ in range(3)]
    assert ids[-1] == [2]


def test_frames_without_detections_and_weak_ones_have_no_say() -> None:
    tracker = Tracker(appearance=True)
    nothing = frame()
    nothing.remove("appearance")  # as where a frame can't be read
    for found in (nothing, *[frame((20.0, RED))] * 4, nothing):
        last = tracker.update(found, IMAGE)
    assert last.track_ids.tolist() == []
    weak = [tracker.update(frame((20.0, BLUE), score=0.4), IMAGE).track_ids for _ in range(3)]
    assert [row.tolist() for row in weak] == [[1]] * 3  # by their place
    both = tracker.update(frame((20.0, RED), (24.0, BLUE)), IMAGE).track_ids.tolist()
    assert both == [1, -1]  # the weak ones' looks are not the track's


class OneTrack:
    """A tracker's track, where the library says what it shows of one."""

    tracker_id = 0
    high_conf_det_threshold = 0.6

    def __init__(self) -> None:
        self.tracks = [self]

    def get_state_bbox(self) -> np.ndarray:
        return np.array([0.0, 0.0, 10.0, 10.0])


def test_fusion_is_the_papers() -> None:
    """max(IoU, 1 - d / 2), for d below the largest distance and boxes that overlap enough."""
    iou, track = AppearanceIoU(), OneTrack()
    place = track.get_state_bbox()[None]
    iou.begin(track, place, np.array([0.9]), RED[None])
    assert iou.compute(place, place).tolist() == [[1.0]]  # no embedding yet
    iou.end(np.array([0]), np.array([0]))
    boxes = np.array([[0, 5, 10, 15], [0, 5.5, 10, 15.5], [0, 9, 10, 19], [4, 5, 14, 15]], float)
    distances = np.array([0.1, LARGEST_DISTANCE + 0.01, 0.1, 0.2])
    looks = np.stack([1 - distances, np.sqrt(1 - (1 - distances) ** 2)], axis=1)
    iou.begin(track, boxes, np.array([0.9, 0.9, 0.9, 0.9]), looks)
    expected = [0.95, 45 / 155, 10 / 190, 0.9]  # alike; not enough; too far; alike
    assert iou.compute(place, boxes)[0].tolist() == pytest.approx(expected)
    # Low scores go by their place alone.
    iou.begin(track, boxes[:1], np.array([0.5]), looks[:1])
    assert iou.compute(place, boxes[:1])[0].tolist() == pytest.approx([50 / 150])


def test_a_tracks_look_is_a_moving_average_and_goes_with_the_track() -> None:
    iou, track = AppearanceIoU(), OneTrack()
    place = track.get_state_bbox()[None]
    for look in (RED, BLUE):
        iou.begin(track, place, np.array([0.9]), look[None])
        iou.end(np.array([0]), np.array([0]))
    mixed = np.array([MOMENTUM, 1 - MOMENTUM])
    distance = 1 - RED @ mixed / np.linalg.norm(mixed)
    shifted = np.array([[0.0, 5, 10, 15]])
    iou.begin(track, shifted, np.array([0.9]), RED[None])
    assert iou.compute(place, shifted)[0, 0] == pytest.approx(1 - distance / 2)
    track.tracks = []  # lost for too long
    iou.end(np.zeros(0, int), np.zeros(0, int))
    track.tracks = [track]
    assert iou.compute(place, shifted)[0, 0] == pytest.approx(50 / 150)


def test_methods_that_go_by_motion_alone_say_so() -> None:
    with pytest.raises(ConfigError, match="'sort' does not go by appearance; choose one of byte"):
        Tracker("sort", appearance=True)
