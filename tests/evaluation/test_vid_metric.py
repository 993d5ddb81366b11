from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.evaluation import matching
from clab_d2.evaluation.vid_metric import (
    SUBSETS,
    VIDPrecision,
    mean_over_classes,
    vid_average_precision,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "vid_eval.npz"
GT = ("gt_img", "gt_box", "gt_cls", "gt_motion_iou")
DT = ("dt_img", "dt_box", "dt_cls", "dt_score")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as data:
        return dict(data)


def evaluate(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return vid_average_precision(*(data[key] for key in GT + DT), int(data["num_classes"]))


@pytest.mark.parametrize("subset", SUBSETS)
def test_equals_the_development_kit(golden, subset):
    ap = evaluate(golden)[subset]
    np.testing.assert_allclose(ap, golden[f"ap_{subset}"], rtol=0, atol=1e-6)
    assert mean_over_classes(ap) == pytest.approx(float(golden[f"map_{subset}"]), abs=1e-6)


def test_chunks_of_pairs_change_nothing(golden, monkeypatch):
    whole = evaluate(golden)
    for size in (1, 7, 100):
        monkeypatch.setattr(matching, "_PAIRS_AT_A_TIME", size)
        for subset, ap in evaluate(golden).items():
            assert ap.tolist() == whole[subset].tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_of_images_objects_and_detections_changes_nothing(seed):
    with np.load(GOLDEN) as file:
        data = dict(file)
    whole = evaluate(data)
    rng = np.random.default_rng(seed)
    for keys in (GT, DT):
        order = rng.permutation(len(data[keys[0]]))
        data.update({key: data[key][order] for key in keys})
    relabel = rng.permutation(int(data["num_images"]))
    data["gt_img"], data["dt_img"] = relabel[data["gt_img"]], relabel[data["dt_img"]]
    for subset, ap in evaluate(data).items():
        np.testing.assert_allclose(ap, whole[subset], rtol=1e-12)


def test_a_perfect_detector_gets_everything(golden):
    for source, target in zip(GT[:3], DT[:3], strict=True):
        golden = {**golden, target: golden[source]}
    golden["dt_score"] = np.linspace(1, 0.1, len(golden["dt_img"]))
    for ap in evaluate(golden).values():
        assert ap.tolist() == [1.0] * 6


def test_adding_the_truth_above_all_else_gives_everything(golden):
    merged = dict(golden)
    for source, target in zip(GT[:3], DT[:3], strict=True):
        merged[target] = np.concatenate([golden[target], golden[source]])
    merged["dt_score"] = np.concatenate([golden["dt_score"], np.full(len(golden["gt_img"]), 2.0)])
    for ap in evaluate(merged).values():
        assert ap.tolist() == [1.0] * 6


def one_class(gt, dt, motion=None) -> dict[str, float]:
    """APs of one class from ``(image, x1, width)`` objects and ``(image, x1, width, score)``."""

    def boxes(rows):
        return np.array([[x, 0, x + width - 1, 9] for _, x, width, *_ in rows]).reshape(-1, 4)

    zeros = np.zeros(max(len(gt), len(dt)), dtype=int)
    motion = [0.8] * len(gt) if motion is None else motion
    ap = vid_average_precision(
        [row[0] for row in gt], boxes(gt), zeros[: len(gt)], motion,
        [row[0] for row in dt], boxes(dt), zeros[: len(dt)], np.array([r[3] for r in dt]), 1,
    )  # fmt: skip
    return {subset: float(values[0]) for subset, values in ap.items()}


def test_right_wrong_right():
    # Precision at the two hits: 1/1 and 2/3, each worth half of the recall.
    ap = one_class([(0, 0, 10), (1, 0, 10)], [(0, 0, 10, 0.9), (0, 50, 10, 0.8), (1, 0, 10, 0.7)])
    assert ap["all"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_precision_is_made_monotonous():
    # Precision 1/2, 2/3 at the hits; the first takes the better one beyond it.
    ap = one_class([(0, 0, 10), (1, 0, 10)], [(0, 50, 10, 0.9), (0, 0, 10, 0.8), (1, 0, 10, 0.7)])
    assert ap["all"] == pytest.approx(2 / 3)


def test_second_detection_of_an_object_is_wrong():
    ap = one_class([(0, 0, 10), (1, 0, 10)], [(0, 0, 10, 0.9), (0, 1, 10, 0.8), (1, 0, 10, 0.7)])
    assert ap["all"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_boxes_count_as_whole_pixels():
    # x from 0 to 9 and from 0 to 4: 5 of 10 pixels, an IoU of exactly one half, which is enough;
    # as plain rectangles (widths 9 and 4) it would be 4/9.
    assert one_class([(0, 0, 10)], [(0, 0, 5, 0.9)])["all"] == 1.0
    assert one_class([(0, 0, 10)], [(0, 0, 4, 0.9)])["all"] == 0.0


def test_small_objects_need_an_overlap_of_half_too():
    # In ILSVRC's still images a 4 x 10 object would need 40 / (14 * 20) = 0.14 only.
    assert one_class([(0, 0, 4)], [(0, 2, 4, 0.9)])["all"] == 0.0


def test_detection_of_an_object_of_another_speed_does_not_count():
    gt = [(0, 0, 10), (0, 100, 10)]
    dt = [(0, 0, 10, 0.9), (0, 1, 10, 0.85), (0, 100, 10, 0.8)]
    ap = one_class(gt, dt, motion=[0.95, 0.5])
    # Neither the slow object's detection nor its double hurts fast; both hits count for all.
    assert ap["fast"] == 1.0
    assert ap["slow"] == 1.0
    assert ap["all"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert np.isnan(ap["medium"])


def test_most_overlapped_object_is_taken_even_if_it_is_ignored():
    # The detection is the slow object's own, and overlaps the fast one by 8 / 12.
    ap = one_class([(0, 0, 10), (0, 2, 10)], [(0, 0, 10, 0.9)], motion=[0.95, 0.5])
    assert ap["slow"] == 1.0
    assert ap["fast"] == 0.0
    assert ap["all"] == 0.5


def test_of_equal_overlaps_the_object_that_counts_is_taken():
    boxes = [(0, 0, 10), (0, 0, 10)]
    for motion in ([0.95, 0.5], [0.5, 0.95]):
        ap = one_class(boxes, [(0, 0, 10, 0.9)], motion=motion)
        assert ap["slow"] == ap["fast"] == 1.0


def test_false_alarm_among_objects_of_several_speeds_is_shared():
    gt = [(0, 0, 10), (0, 100, 10), (0, 200, 10)]
    # It overlaps none: the objects of other speeds are 2 of 3 for fast, 1 of 3 for slow.
    dt = [(0, 50, 10, 0.9), *((0, x, 10, 0.5) for _, x, _ in gt)]
    ap = one_class(gt, dt, motion=[0.5, 0.95, 0.95])
    assert ap["fast"] == pytest.approx(1 / (1 + 2 / 3))
    assert ap["slow"] == pytest.approx(2 / (2 + 1 / 3))
    # One that overlaps a slow object a little is slow's false alarm alone.
    ap = one_class(gt, [(0, 108, 10, 0.9), *dt[1:]], motion=[0.5, 0.95, 0.95])
    assert ap["fast"] == 1.0
    assert ap["slow"] == pytest.approx(2 / 3)


def test_detection_in_a_frame_without_the_class_is_shared_among_speeds():
    gt = [(0, 0, 10), (1, 0, 10), (2, 0, 10), (3, 0, 10)]
    ap = one_class(gt, [(9, 0, 10, 0.9), (0, 0, 10, 0.8)], motion=[0.5, 0.95, 0.95, 0.95])
    assert ap["fast"] == pytest.approx(1 / (1 + 0.25))  # a quarter of the objects are fast
    assert ap["all"] == pytest.approx(0.25 / 2)


def test_object_that_never_counts():
    gt = {"gt_image": [0, 0], "gt_box": [[0, 0, 9, 9], [50, 0, 59, 9]], "gt_class": [0, 0]}
    dt = {"dt_image": [0, 0], "dt_box": [[50, 0, 59, 9], [0, 0, 9, 9]], "dt_class": [0, 0]}
    matcher = VIDPrecision(
        **gt, gt_motion_iou=[0.8, 0.8], **dt, dt_score=np.array([0.9, 0.8]),
        num_classes=1, gt_never=[False, True],
    )  # fmt: skip
    assert matcher.positives("all").tolist() == [1]
    assert matcher.average_precision("all").tolist() == [1.0]


def test_nothing_detected_and_nothing_to_detect():
    assert one_class([(0, 0, 10)], [])["all"] == 0.0
    assert np.isnan(one_class([], [(0, 0, 10, 0.9)])["all"])
    assert np.isnan(one_class([], [])["all"])


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="gt arrays differ in length"):
        vid_average_precision([0, 1], [[0, 0, 1, 1]], [0], [1.0], [], [], [], np.zeros(0), 1)
    with pytest.raises(ValueError, match="dt_class holds a class outside 0 to 0"):
        vid_average_precision(
            [], [], [], [], [0], [[0, 0, 1, 1]], [1], np.array([0.5]), 1
        )  # fmt: skip
