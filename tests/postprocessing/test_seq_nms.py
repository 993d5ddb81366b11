from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_detections import (
    detections_of,
    iou,
    long_video,
    rows_strategy,
)

from clab_d2.errors import ConfigError
from clab_d2.postprocessing import Rescored, SeqNMS, VideoDetections, links, seq_nms


def plain_seq_nms(
    detections: VideoDetections, link_iou: float, suppress_iou: float, rescoring: str
) -> dict[int, float]:
    """The paper's three steps, written out: every sequence there is, again in every round."""
    result: dict[int, float] = {}
    box, frame = detections.box, detections.frame
    for label in set(detections.class_index.tolist()):
        left = set(np.flatnonzero(detections.class_index == label).tolist())
        while left:
            sequences = [[row] for row in left]
            for sequence in sequences:  # grows while it is walked along
                last = sequence[-1]
                sequences += [
                    [*sequence, row]
                    for row in left
                    if frame[row] == frame[last] + 1 and iou(box[last], box[row]) > link_iou
                ]
            # Of equal sums: the one that ends earliest, and so on backwards.
            chosen = min(
                sequences,
                key=lambda s: (
                    -sum(detections.score[s]),
                    [(frame[row], row) for row in reversed(s)],
                ),
            )
            scores = detections.score[chosen]
            for row in chosen:
                result[row] = scores.mean() if rescoring == "average" else scores.max()
            left -= set(chosen)
            left -= {
                row
                for row, member in itertools.product(left, chosen)
                if frame[row] == frame[member] and iou(box[row], box[member]) > suppress_iou
            }
    return result


def as_dict(rescored: Rescored) -> dict[int, float]:
    return dict(zip(rescored.rows.tolist(), rescored.score.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(
    rows=rows_strategy,
    link_iou=st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    suppress_iou=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    rescoring=st.sampled_from(["average", "max"]),
    pairs_at_a_time=st.sampled_from([1, 7, 10**6]),
)
def test_equals_the_steps_of_the_paper(
    rows, link_iou, suppress_iou, rescoring, pairs_at_a_time
) -> None:
    detections = detections_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "_PAIRS_AT_A_TIME", pairs_at_a_time)
        rescored = seq_nms(detections, link_iou, suppress_iou, rescoring)
    assert rescored.rows.tolist() == sorted(rescored.rows.tolist())
    expected = plain_seq_nms(detections, link_iou, suppress_iou, rescoring)
    assert as_dict(rescored) == pytest.approx(expected, abs=1e-12)


def test_a_weak_detection_gains_from_its_neighbours() -> None:
    still = (0, 0, 10, 10)
    detections = detections_of([(0, still, 0.9, 0), (1, still, 0.3, 0), (2, still, 0.9, 0)])
    assert as_dict(seq_nms(detections)) == pytest.approx({0: 0.7, 1: 0.7, 2: 0.7})
    assert as_dict(seq_nms(detections, rescoring="max")) == {0: 0.9, 1: 0.9, 2: 0.9}


def test_the_sequence_that_lasts_suppresses_the_peak() -> None:
    # Alone in its frame the peak would win; four frames of another box sum up to more.
    steady, peak = (0, 0, 10, 10), (0, 0, 10, 20)
    detections = detections_of([*((f, steady, 0.6, 0) for f in range(4)), (2, peak, 0.95, 0)])
    assert as_dict(seq_nms(detections, link_iou=0.6)) == pytest.approx(dict.fromkeys(range(4), 0.6))


def test_classes_and_frames_apart_have_nothing_to_do_with_each_other() -> None:
    still = (0, 0, 10, 10)
    detections = detections_of([(0, still, 0.9, 0), (1, still, 0.3, 1), (3, still, 0.5, 0)])
    assert as_dict(seq_nms(detections)) == {0: 0.9, 1: 0.3, 2: 0.5}


def test_nothing() -> None:
    assert as_dict(seq_nms(detections_of([]))) == {}


def test_ten_thousand_frames_are_done() -> None:
    """An object in all of them: plainly, each of thousands of rounds would sum all frames up."""
    detections = long_video(frames=10_000, per_frame=8)
    rescored = seq_nms(detections)
    object_rows = np.flatnonzero(detections.class_index == 0)
    kept = dict(zip(rescored.rows.tolist(), rescored.score.tolist(), strict=True))
    mean = detections.score[object_rows].mean()
    assert [kept[row] for row in object_rows.tolist()] == pytest.approx([mean] * 10_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link_iou": 1.5}, "TEST.POSTPROCESS.LINK_IOU is 1.5; it must be from 0 to 1"),
        ({"suppress_iou": -1}, "TEST.POSTPROCESS.SUPPRESS_IOU is -1"),
        ({"rescoring": "median"}, "RESCORING is 'median'; choose one of 'average', 'max'"),
    ],
)
def test_wrong_numbers_are_told(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SeqNMS(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score": [-0.1]}, "negative"),
        ({"score": [np.nan]}, "not finite"),
        ({"frame": [0, 1]}, "differ in length"),
    ],
)
def test_wrong_detections_are_told(values, message) -> None:
    right = {"frame": [0], "box": [[0, 0, 1, 1]], "score": [0.5], "class_index": [0]}
    with pytest.raises(ValueError, match=message):
        VideoDetections(**{**right, **values})
