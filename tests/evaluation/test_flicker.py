from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.evaluation import COCOResults, Detections, GroundTruth
from clab_d2.evaluation.flicker import Flicker, annotated_positions, measure_flicker

CAT, DOG = 1, 2


def truth_of(*tracks: dict[int, list[float]], unknown: tuple[int, ...] = ()) -> GroundTruth:
    """One video; of each object its boxes by frame."""
    frames = 1 + max(frame for track in tracks for frame in track)
    return GroundTruth.from_json(
        {
            "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
            "videos": [{"id": 1, "name": "v"}],
            "images": [
                {"id": 100 + f, "video_id": 1, "frame_id": f, "annotated": f not in unknown}
                for f in range(frames)
            ],
            "annotations": [
                {"id": 50 * number + frame, "image_id": 100 + frame, "category_id": CAT,
                 "instance_id": number, "bbox": box}
                for number, track in enumerate(tracks)
                for frame, box in track.items()
            ],
        },
        "truth.json",
    )  # fmt: skip


def flicker_of(truth: GroundTruth, *found: tuple[int, list[float], float, int]) -> Flicker:
    """Of detections by frame, xywh box, score and category."""
    frame, box, score, category = zip(*found, strict=True) if found else ((), (), (), ())
    results = COCOResults(
        np.array(frame, dtype=np.int64) + 100,
        np.array(category, dtype=np.int64),
        np.array(box, dtype=float).reshape(-1, 4),
        np.array(score, dtype=float),
    )
    return measure_flicker(truth, Detections.from_results(results, truth, "predictions"))


BOX = [0, 0, 10, 10]


def test_a_steady_detection_does_not_flicker() -> None:
    moving = {f: [3.0 * f * f, 2.0 * f, 10, 10] for f in range(6)}
    found = [(f, box, 0.9, DOG) for f, box in moving.items()]
    assert flicker_of(truth_of(moving), *found) == Flicker(100, 0, 0, 0)


def test_changes_of_class_are_counted_by_steps() -> None:
    truth = truth_of(dict.fromkeys(range(5), BOX))
    labels = (CAT, DOG, DOG, CAT)  # 2 of 3 steps; nothing in the last frame
    flicker = flicker_of(truth, *((f, BOX, 0.9, label) for f, label in enumerate(labels)))
    assert flicker.class_changes == pytest.approx(200 / 3)
    assert flicker.found == pytest.approx(80)
    assert flicker.gaps == 0


def test_of_several_detections_the_best_scored_names_the_object() -> None:
    truth = truth_of(dict.fromkeys(range(2), BOX))
    flicker = flicker_of(
        truth, (0, BOX, 0.9, CAT), (0, BOX, 0.8, DOG), (1, BOX, 0.8, CAT), (1, BOX, 0.9, DOG)
    )
    assert flicker.class_changes == 100


def test_gaps_lie_between_what_is_found() -> None:
    truth = truth_of(dict.fromkeys(range(8), BOX))
    # Found in 2, 3 and 6: of the five frames from 2 to 6 two are missing.
    weak = [(4, BOX, 0.49, CAT), (5, [0, 0, 10, 4.9], 0.9, CAT)]
    flicker = flicker_of(truth, *((f, BOX, 0.9, CAT) for f in (2, 3, 6)), *weak)
    assert flicker.gaps == pytest.approx(40)
    assert flicker.found == pytest.approx(100 * 3 / 8)
    assert flicker.class_changes == 0  # one step: from 2 to 3


def test_frames_without_the_object_are_no_gaps() -> None:
    truth = truth_of({0: BOX, 3: BOX}, {1: [50, 50, 5, 5], 2: [50, 50, 5, 5]})
    flicker = flicker_of(truth, (0, BOX, 0.9, CAT), (3, BOX, 0.9, DOG))
    assert flicker.gaps == 0
    assert math.isnan(flicker.class_changes)  # it was away in between: no step


def test_jitter_is_the_second_difference_of_the_corners_errors() -> None:
    moving = {f: [5.0 * f, 0, 20, 20] for f in range(3)}
    # The middle one is 1 px to the right and 2 px wider: its left corner is off by 1, its right
    # one by 3; the second differences are twice that.
    found = [(f, [x + (f == 1), y, w + 2 * (f == 1), h], 0.9, CAT)
             for f, (x, y, w, h) in moving.items()]  # fmt: skip
    assert flicker_of(truth_of(moving), *found).jitter == pytest.approx(100 * (2 + 6) / 2 / 20)


def test_an_error_that_stays_or_grows_evenly_is_no_jitter() -> None:
    still = {f: [0, 0, 30, 30] for f in range(5)}
    found = [(f, [1.0 + f, 2, 30, 30], 0.9, CAT) for f in still]
    assert flicker_of(truth_of(still), *found).jitter == pytest.approx(0)


def test_neighbours_are_annotated_frames() -> None:
    truth = truth_of(dict.fromkeys((0, 2, 4), BOX), unknown=(1, 3))
    assert annotated_positions(truth).tolist() == [0, -1, 1, -1, 2]
    flicker = flicker_of(truth, (0, BOX, 0.9, CAT), (2, BOX, 0.9, DOG), (4, BOX, 0.9, CAT))
    assert flicker.class_changes == 100


def test_nothing_found_and_nothing_to_find() -> None:
    truth = truth_of({0: BOX})
    nothing = flicker_of(truth)
    assert nothing.found == 0
    assert all(map(math.isnan, (nothing.class_changes, nothing.gaps, nothing.jitter)))
    unknown = dataclasses.replace(truth, identity=np.full(1, -1))
    assert math.isnan(flicker_of(unknown, (0, BOX, 0.9, CAT)).found)


def plain_flicker(truth: GroundTruth, found: dict[tuple[int, int], tuple[list[float], int]]):
    """From which box and class each object has in each frame, track by track."""
    steps, changes, between, gaps, shakes = 0, 0, 0, 0, []
    for identity in set(truth.identity.tolist()):
        rows = np.flatnonzero(truth.identity == identity)
        boxes = {int(truth.frame_of_image[truth.image[row]]): truth.box[row] for row in rows}
        known = [frame for frame in sorted(boxes) if (identity, frame) in found]
        for frame in known:
            if (identity, frame + 1) in found:
                steps += 1
                changes += found[identity, frame][1] != found[identity, frame + 1][1]
            if all((identity, frame + k) in found for k in (1, 2)):
                corners = []
                for k in range(3):
                    x, y, w, h = found[identity, frame + k][0]
                    tx, ty, tw, th = boxes[frame + k]
                    corners.append([x - tx, y - ty, x + w - tx - tw, y + h - ty - th])
                a, b, c = corners
                d = [p - 2 * q + r for p, q, r in zip(a, b, c, strict=True)]
                _, _, w, h = boxes[frame + 1]
                shakes.append((math.hypot(*d[:2]) + math.hypot(*d[2:])) / 2 / math.sqrt(w * h))
        if known:
            inside = [frame for frame in boxes if known[0] <= frame <= known[-1]]
            between += len(inside)
            gaps += len(inside) - len(known)
    return Flicker(
        100 * len(found) / len(truth.box),
        100 * changes / steps if steps else math.nan,
        100 * gaps / between if between else math.nan,
        100 * sum(shakes) / len(shakes) if shakes else math.nan,
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_plain_way(data) -> None:
    tracks, found, shown = [], {}, []
    for number in range(data.draw(st.integers(1, 3))):
        frames = data.draw(st.sets(st.integers(0, 6), min_size=1))
        tracks.append({f: [100.0 * number + f, 5.0 * f, 20 + f, 30] for f in frames})
        for frame, (x, y, w, h) in tracks[-1].items():
            if data.draw(st.integers(0, 3)):
                dx, dw = data.draw(st.tuples(st.integers(-2, 2), st.integers(-2, 2)))
                box, label = [x + dx, y, w + dw, h], data.draw(st.sampled_from([CAT, DOG]))
                found[number, frame] = (box, label)
                shown.append((frame, box, 0.9, label))
    truth = truth_of(*tracks)
    expected = plain_flicker(truth, found)
    measured = flicker_of(truth, *data.draw(st.permutations(shown)))
    for name, value in dataclasses.asdict(measured).items():
        if name != "found" and not found:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(getattr(expected, name), nan_ok=True)
