from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from clab_d2.errors import ConfigError
from clab_d2.video.tracks import LEAST_SCORE, TRACKERS, Tracker

IMAGE = np.zeros((100, 200, 3), np.uint8)
each_method = pytest.mark.parametrize("method", TRACKERS)


def instances_of(*found: tuple[float, float, int], score: float = 0.9) -> Instances:
    """Boxes of 20 x 20 pixels by corner and class."""
    result = Instances((100, 200))
    result.pred_boxes = Boxes(torch.tensor([[x, y, x + 20, y + 20] for x, y, _ in found]))
    result.scores = torch.full((len(found),), score)
    result.pred_classes = torch.tensor([label for _, _, label in found], dtype=torch.int64)
    return result


def track(method: str, frames: list[Instances]) -> list[list[int]]:
    tracker = Tracker(method, frame_rate=10)
    results = [tracker.update(frame, IMAGE) for frame in frames]
    for frame, result in zip(frames, results, strict=True):
        assert (result.pred_boxes.tensor == frame.pred_boxes.tensor).all()
        assert not frame.has("track_ids")
        assert result.track_ids.dtype == torch.int64
    return [result.track_ids.tolist() for result in results]


@each_method
def test_objects_keep_their_numbers_whatever_the_order(method: str) -> None:
    """Two that move, of one class; the detector's order changes from frame to frame."""
    frames = []
    for f in range(12):
        found = [(10.0 + 2 * f, 10.0, 3), (160.0 - 2 * f, 60.0, 3)]
        frames.append(instances_of(*(found if f % 2 else found[::-1])))
    ids = [row if f % 2 else row[::-1] for f, row in enumerate(track(method, frames))]
    late = ids[4:]
    assert all(row == late[0] for row in late)
    assert set(late[0]) == {1, 2}
    for row in ids[:4]:  # not confirmed yet, or the same
        assert all(number in (-1, late[0][i]) for i, number in enumerate(row))


@each_method
def test_classes_are_apart(method: str) -> None:
    """A box that changes its class is another track; two classes in one place are two."""
    frames = [instances_of((50.0, 50.0, f // 6)) for f in range(12)]
    ids = [row[0] for row in track(method, frames)]
    assert ids[5] > 0 and ids[11] > 0 and ids[5] != ids[11]
    frames = [instances_of((50.0, 50.0, 0), (50.0, 50.0, 1)) for _ in range(6)]
    assert sorted(track(method, frames)[-1]) == [1, 2]


@each_method
def test_frames_without_detections(method: str) -> None:
    still = instances_of((50.0, 50.0, 0))
    nothing = instances_of()
    nothing.pred_boxes = Boxes(torch.zeros(0, 4))
    assert track(method, [nothing] * 3) == [[], [], []]
    ids = track(method, [*[still] * 5, nothing, nothing, *[still] * 4])
    assert ids[4] == ids[-1] == [1]  # found again
    assert ids[5] == ids[6] == []


def test_a_track_that_was_away_for_long_is_another() -> None:
    still, elsewhere = instances_of((50.0, 50.0, 0)), instances_of((150.0, 10.0, 1))
    ids = track("bytetrack", [*[still] * 4, *[elsewhere] * 30, *[still] * 4])
    assert [ids[3], ids[30], ids[-1]] == [[1], [2], [3]]


def test_weak_detections_begin_no_track() -> None:
    weak = instances_of((50.0, 50.0, 0), score=0.2)
    assert track("bytetrack", [weak] * 5) == [[-1]] * 5


def repeated(shift: float) -> Instances:
    """An object found twice: a second box of a lower score so many of its 20 pixels aside."""
    found = instances_of((50.0, 50.0, 0), (50.0 + shift, 50.0, 0))
    found.scores = torch.tensor([0.8, 0.9])
    return found


@each_method
def test_a_box_that_repeats_a_better_one_is_no_object(method: str) -> None:
    """IoU of 0.6: what the detectors' own NMS would take out is less sure than that."""
    assert track(method, [repeated(5.0)] * 6)[-1] == [-1, 1]
    assert sorted(track(method, [repeated(15.0)] * 6)[-1]) == [1, 2]  # IoU of 0.14
    other_class = repeated(5.0)
    other_class.pred_classes = torch.tensor([0, 1])
    assert sorted(track(method, [other_class] * 6)[-1]) == [1, 2]


def test_what_trackers_are_given_can_be_chosen() -> None:
    tracker = Tracker(frame_rate=10, nms_threshold=1.0)
    results = [tracker.update(repeated(5.0), IMAGE) for _ in range(4)]
    assert sorted(results[-1].track_ids.tolist()) == [1, 2]
    strong, weak = instances_of((50.0, 50.0, 0)), instances_of((50.0, 50.0, 0), score=0.05)
    for least_score, expected in ((LEAST_SCORE, [-1]), (0.01, [1])):
        tracker = Tracker(frame_rate=10, least_score=least_score)
        results = [tracker.update(frame, IMAGE) for frame in (strong, strong, strong, weak)]
        assert results[-2].track_ids.tolist() == [1]
        assert results[-1].track_ids.tolist() == expected
    for name in ("least_score", "nms_threshold"):
        with pytest.raises(ConfigError, match=f"{name} is 1.5; it must be from 0 to 1"):
            Tracker(**{name: 1.5})


def test_what_is_missing_or_unknown_is_told(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="tracker 'deepsort': choose one of bytetrack, botsort"):
        Tracker("deepsort")
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ConfigError, match=r"needs trackers.*pip install \"clab_d2\[track\]\""):
        Tracker()
