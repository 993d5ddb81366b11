from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from clab_d2.errors import DataError
from clab_d2.evaluation import COCOResults, Detections, GroundTruth, compute_metrics


def test_ground_truth(truth):
    assert truth.image_ids.tolist() == [10, 20, 30, 40]
    assert truth.annotated.tolist() == [True, True, False, True]
    assert truth.image.tolist() == [0, 1, 1, 3]  # nothing of the frame of unknown truth
    assert truth.class_index.tolist() == [0, 0, 1, 1]
    assert truth.area.tolist() == [100, 100, 100, 7]
    assert truth.crowd.tolist() == [False, False, False, True]
    assert [truth.video_names[v] for v in truth.video_of_image] == ["a", "a", "a", "still.jpg"]


def test_own_motion_iou_decides_and_else_the_track(truth):
    assert truth.motion_iou == pytest.approx([1 / 3, 1 / 3, 0.8, math.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "truth.json: not a COCO annotation file"),
        (lambda c: c["images"][0].pop("id"), "truth.json: .* malformed .*lacks 'id'"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "truth.json: .* malformed"),
        (lambda c: c["annotations"][0].pop("bbox"), "malformed .*lacks 'bbox'"),
        (lambda c: c["images"][0].update(id=10), "two images have the same id"),
        (lambda c: c["categories"][0].update(id=2), "two categories have the same id"),
        (lambda c: c["images"][0].update(id=2**63), "of at most 64 bits"),
        (lambda c: c["categories"][0].update(id=10**30), "of at most 64 bits"),
        (lambda c: c["images"][0].update(frame_id="1"), "frame_id must be an integer .*'1'"),
        (lambda c: c["annotations"][0].update(instance_id="7"), "instance_id must .*'7'"),
        (lambda c: c["annotations"][0].update(instance_id=1.0), "instance_id must be an integer"),
        (lambda c: c["annotations"][0].update(instance_id=2**63), "instance_id .*64 bits"),
        (lambda c: c["annotations"][0].update(motion_iou=1.5), "motion_iou is not from 0 to 1"),
        (lambda c: c["annotations"][0].update(motion_iou="0.8"), "expected numbers"),
        (lambda c: c["annotations"][0].update(bbox=["0", "0", "1", "1"]), "expected numbers"),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, -1, 1]), "negative size"),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, math.nan, 1]), "not finite"),
        (lambda c: c["annotations"][0].update(area=math.inf), "area is not a finite number"),
        (lambda c: c["categories"][0].update(name="cat"), "two categories have the same name"),
    ],
)
def test_malformed_ground_truth_is_one_clear_line(truth_json, change, message):
    change(truth_json)
    with pytest.raises(DataError, match=message) as error:
        GroundTruth.from_json(truth_json, "truth.json")
    assert "\n" not in str(error.value)


def test_annotations_of_unknown_images_or_categories_are_left_out(truth_json, caplog):
    truth_json["annotations"][0]["image_id"] = 99
    truth_json["annotations"][1]["category_id"] = 99
    with caplog.at_level(logging.WARNING):
        truth = GroundTruth.from_json(truth_json, "truth.json")
    assert len(truth.image) == 2
    assert "2 annotations name an image or a category" in caplog.text


def moving(num_objects: int = 3, num_frames: int = 4, **fields: object) -> dict:
    """Objects side by side that move by a fifth of their width a frame."""
    return {
        "categories": [{"id": 1, "name": "dog"}],
        "videos": [{"id": 1, "name": "v"}],
        "images": [{"id": i, "video_id": 1, "frame_id": i} for i in range(num_frames)],
        "annotations": [
            {"image_id": i, "category_id": 1, "bbox": [100 * k + 2 * i, 0, 10, 10], **fields}
            for i in range(num_frames)
            for k in range(num_objects)
        ],
    }


def perfect_metrics(truth: GroundTruth) -> dict:
    results = COCOResults(
        truth.image_ids[truth.image], truth.class_ids[truth.class_index], truth.box,
        np.full(len(truth.image), 0.9),
    )  # fmt: skip
    return compute_metrics(truth, Detections.from_results(results, truth, "p")).as_json()


@pytest.mark.parametrize("number", [{}, {"instance_id": None}, {"instance_id": -1},
                                    {"instance_id": -7}, {"motion_iou": None}])  # fmt: skip
def test_without_identity_no_object_has_a_speed(number, caplog):
    truth = GroundTruth.from_json(moving(**number), "truth.json")
    assert np.isnan(truth.motion_iou).all()
    assert "12 of 12 objects have neither an instance_id nor a motion_iou" in caplog.text
    assert len(caplog.records) == 1
    vid = perfect_metrics(truth)["vid"]
    assert vid["AP50"] == 100
    assert (vid["AP50-slow"], vid["AP50-medium"], vid["AP50-fast"]) == (None, None, None)
    assert vid["per-class-slow"] == {"dog": None}


def test_identity_of_some_objects(caplog):
    """Object 0 has one, object 1 says -1, object 2 has its motion IoU."""
    content = moving()
    fields = ({"instance_id": 0}, {"instance_id": -1}, {"motion_iou": 0.95})
    for index, annotation in enumerate(content["annotations"]):
        annotation.update(fields[index % 3])
    truth = GroundTruth.from_json(content, "truth.json")
    assert "4 of 12 objects" in caplog.text
    by_frame = truth.motion_iou.reshape(4, 3)
    assert (by_frame[:, 0] < 0.7).all()
    assert np.isnan(by_frame[:, 1]).all()
    assert (by_frame[:, 2] == 0.95).all()
    vid = perfect_metrics(truth)["vid"]
    assert (vid["AP50"], vid["AP50-slow"], vid["AP50-medium"]) == (100, 100, None)
    # Objects of unknown speed are ignored, and so is what finds them.
    assert vid["AP50-fast"] == 100


def test_an_object_with_an_identity_but_alone_counts_as_still():
    content = moving(num_objects=1, num_frames=1, instance_id=5)
    assert GroundTruth.from_json(content, "t").motion_iou.tolist() == [1.0]


def test_a_track_twice_in_a_frame_says_nothing_about_motion():
    content = moving(num_objects=2, num_frames=1, instance_id=5)
    assert GroundTruth.from_json(content, "t").motion_iou.tolist() == [1.0, 1.0]


def test_without_frame_numbers_no_object_has_a_speed():
    content = moving(num_objects=1, instance_id=5)
    for image in content["images"]:
        del image["frame_id"]
    assert np.isnan(GroundTruth.from_json(content, "t").motion_iou).all()


def test_many_objects_without_identity_take_no_time():
    """As one track, their boxes would be compared pair by pair: 10^9 of them."""
    content = moving(num_objects=50, num_frames=600, instance_id=-1)
    assert np.isnan(GroundTruth.from_json(content, "t").motion_iou).all()


def test_only_some_classes(truth):
    cats = truth.only_classes(["bird", "cat"])
    assert cats.class_names == ["cat"]
    assert cats.class_ids.tolist() == [2]
    assert cats.class_index.tolist() == [0, 0]
    assert cats.box.tolist() == truth.box[2:].tolist()
    assert cats.image_ids is truth.image_ids
    swapped = truth.only_classes(["cat", "dog"])
    assert swapped.class_ids.tolist() == [2, 5]
    assert swapped.class_index.tolist() == [1, 1, 0, 0]
    with pytest.raises(DataError, match=r"truth.json: none of its categories \(dog, cat\) is one"):
        truth.only_classes(["bird"])


def test_figures_by_condition():
    content = moving(num_objects=2, instance_id=0)
    for index, annotation in enumerate(content["annotations"]):
        annotation["instance_id"] = index % 2
        if index % 2:
            annotation["condition"] = "fog" if index < 4 else "clear"
    truth = GroundTruth.from_json(content, "truth.json")
    assert truth.condition_names == ["clear", "fog"]
    assert truth.condition.tolist() == [-1, 1, -1, 1, -1, 0, -1, 0]
    # Of the objects in fog one is found, the other missed; of the others all are found.
    found = np.delete(np.arange(8), 3)
    results = COCOResults(
        truth.image_ids[truth.image[found]], truth.class_ids[truth.class_index[found]],
        truth.box[found], np.full(len(found), 0.9),
    )  # fmt: skip
    metrics = compute_metrics(truth, Detections.from_results(results, truth, "p"))
    assert metrics.vid_by_condition == {"clear": 100, "fog": 50}
    assert metrics.as_json()["vid"]["by-condition"] == {"clear": 100, "fog": 50}
    assert truth.only_classes(["dog"]).condition.tolist() == truth.condition.tolist()
    assert "by-condition" not in perfect_metrics(GroundTruth.from_json(moving(), "t"))["vid"]
    content["annotations"][0]["condition"] = 3
    with pytest.raises(DataError, match=r"truth.json: .*condition must be a string, not 3"):
        GroundTruth.from_json(content, "truth.json")
