from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clab_d2.evaluation import matching
from clab_d2.evaluation.coco_metric import SIZES, coco_precision


def random_data(seed: int, *, crowded: bool = False, ties: bool = False) -> dict[str, np.ndarray]:
    """A few images with objects of all sizes and detections near them, and elsewhere."""
    rng = np.random.default_rng(seed)
    num_images, num_classes, num_objects = 6, 3, 30
    gt_box = np.concatenate(
        [rng.uniform(0, 200, (num_objects, 2)), 2 ** rng.uniform(2, 8, (num_objects, 2))], axis=1
    ).round(1)
    source = rng.integers(0, num_objects, 900 if crowded else 150)
    count = len(source)
    dt_box = gt_box[source] + rng.normal(0, 1, (count, 4)) * gt_box[source][:, [2, 3, 2, 3]] * 0.15
    dt_box[:, 2:] = np.maximum(dt_box[:, 2:], 1)
    if ties:
        dt_box = gt_box[source] + rng.integers(0, 2, (count, 4)) * 4
        gt_box[::3] = gt_box[1::3]
    image = rng.integers(0, num_images, num_objects)
    classes = rng.integers(0, num_classes, num_objects)
    score = rng.uniform(0, 1, count)
    return {
        "gt_image": image,
        "gt_box": gt_box,
        "gt_class": classes,
        "gt_area": (gt_box[:, 2] * gt_box[:, 3] * rng.uniform(0.5, 1, num_objects)).round(2),
        "gt_crowd": rng.uniform(size=num_objects) < 0.15,
        "dt_image": np.zeros(count, int)
        if crowded
        else np.sort(np.where(rng.uniform(size=count) < 0.9, image[source], count % num_images)),
        "dt_box": dt_box,
        "dt_class": np.where(rng.uniform(size=count) < 0.9, classes[source], 0),
        "dt_score": score.round(1) if ties else score,
    }


def pycocotools_eval(data: dict[str, np.ndarray], num_images: int = 6) -> COCOeval:
    gt = COCO()
    gt.dataset = {
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": c} for c in range(3)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": c, "bbox": b, "area": a, "iscrowd": k}
            for i, (image, c, b, a, k) in enumerate(
                zip(
                    *(
                        data[f"gt_{key}"].tolist()
                        for key in ("image", "class", "box", "area", "crowd")
                    ),
                    strict=True,
                )
            )
        ],
    }
    gt.dataset["info"] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        dt = gt.loadRes(
            [
                {"image_id": image, "category_id": c, "bbox": b, "score": s}
                for image, c, b, s in zip(
                    *(data[f"dt_{key}"].tolist() for key in ("image", "class", "box", "score")),
                    strict=True,
                )
            ]
        )
        evaluation = COCOeval(gt, dt, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_equals_pycocotools(data: dict[str, np.ndarray]) -> None:
    ours = coco_precision(**data, num_classes=3)
    theirs = pycocotools_eval(data)
    for index, size in enumerate(SIZES):
        expected = theirs.eval["precision"][:, :, :, index, -1]
        assert np.nan_to_num(ours.precision[size], nan=-1.0).tolist() == expected.tolist()
    for value, expected in zip(ours.summary().values(), theirs.stats[:6], strict=True):
        assert (-1.0 if math.isnan(value) else value) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_pycocotools_to_the_last_digit(seed):
    assert_equals_pycocotools(random_data(seed))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_pycocotools_with_equal_scores_and_equal_overlaps(seed):
    assert_equals_pycocotools(random_data(seed, ties=True))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_pycocotools_beyond_100_detections_a_class_and_image(seed):
    assert_equals_pycocotools(random_data(seed, crowded=True))


def test_of_equal_overlaps_the_last_object_is_taken():
    # The first detection overlaps both objects by 8 / 12; the second overlaps only one enough.
    for second in (0, 4):
        data = {
            "gt_image": np.zeros(2, int),
            "gt_box": np.array([[0, 0, 10, 10], [4, 0, 10, 10.0]]),
            "gt_class": np.zeros(2, int),
            "gt_area": np.full(2, 100.0),
            "gt_crowd": np.zeros(2, bool),
            "dt_image": np.zeros(2, int),
            "dt_box": np.array([[2, 0, 10, 10], [second, 0, 10, 10.0]]),
            "dt_class": np.zeros(2, int),
            "dt_score": np.array([0.9, 0.8]),
        }
        assert_equals_pycocotools(data)
        ap50 = coco_precision(**data, num_classes=3).summary()["AP50"]
        assert ap50 == (1.0 if second == 0 else pytest.approx(51 / 101))


def test_chunks_of_pairs_change_nothing(monkeypatch):
    data = random_data(3)
    whole = coco_precision(**data, num_classes=3).summary()
    monkeypatch.setattr(matching, "_PAIRS_AT_A_TIME", 5)
    assert coco_precision(**data, num_classes=3).summary() == whole


def test_one_hit_of_two_objects():
    ap = coco_precision(
        gt_image=np.array([0, 1]),
        gt_box=np.array([[0, 0, 10, 10], [0, 0, 10, 10.0]]),
        gt_class=np.zeros(2, int),
        gt_area=np.array([100.0, 100.0]),
        gt_crowd=np.zeros(2, bool),
        dt_image=np.array([0]),
        dt_box=np.array([[0, 0, 10, 8.0]]),  # IoU 0.8: enough for 7 of 10 thresholds
        dt_class=np.zeros(1, int),
        dt_score=np.array([0.9]),
        num_classes=1,
    ).summary()
    assert ap["AP50"] == ap["AP75"] == pytest.approx(51 / 101)  # recall points 0 to 0.5
    assert ap["AP"] == pytest.approx(0.7 * 51 / 101)
    assert ap["APs"] == ap["AP"]
    assert math.isnan(ap["APl"])
