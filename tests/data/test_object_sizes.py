"""Object sizes at the model's input, and the input and anchors proposed for them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.data.clip_augmentation import resize_transform
from clab_d2.data.object_sizes import (
    Anchors,
    InputSize,
    ObjectBoxes,
    is_too_small,
    propose_anchors,
    propose_input,
    too_small_line,
)


def objects_of(sizes: list[tuple[float, float]], frame: tuple[int, int]) -> ObjectBoxes:
    """Objects of (width, height) somewhere in frames of (width, height)."""
    rng = np.random.default_rng(0)
    wh = np.array(sizes, dtype=float)
    xy = rng.random((len(wh), 2)) * (np.array(frame) - wh)
    return ObjectBoxes(np.concatenate([xy, wh], axis=1), np.tile(frame, (len(wh), 1)))


def test_objects_of_records() -> None:
    """Crowds and empty boxes are no objects; corners become width and height."""
    record = {
        "width": 64,
        "height": 48,
        "annotations": [
            {"bbox": [1, 2, 11, 22], "bbox_mode": BoxMode.XYXY_ABS},
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1},
            {"bbox": [1, 2, 0, 4], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0},
        ],
    }
    objects = ObjectBoxes.from_records([record, {**record, "annotations": []}])
    assert objects.xywh.tolist() == [[1, 2, 10, 20]] and objects.frame.tolist() == [[64, 48]]
    assert objects.side == pytest.approx(200**0.5) and objects.ratio == pytest.approx(2)
    assert len(ObjectBoxes.join([objects, objects])) == 2


@pytest.mark.parametrize("backend", ["opencv", "pillow"])
@pytest.mark.parametrize("short_edge", [0, 128])
def test_boxes_are_resized_as_the_loader_does(backend: str, short_edge: int) -> None:
    boxes = np.array([[10, 20, 31, 90], [5, 6, 7, 80]], dtype=float)
    objects = ObjectBoxes(boxes, np.array([[768, 576], [130, 400]]))
    resized = objects.resized(InputSize(short_edge, 192, backend))
    for box, (width, height), ours in zip(boxes, objects.frame, resized.xywh, strict=True):
        transform = resize_transform(height, width, short_edge, 192, backend)
        corners = transform.apply_box(np.array([[*box[:2], *(box[:2] + box[2:])]]))[0]
        np.testing.assert_allclose(ours, [*corners[:2], *(corners[2:] - corners[:2])])


@settings(max_examples=40, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(*[st.floats(0, 0.7)] * 2, *[st.floats(0.05, 0.3)] * 2), min_size=1, max_size=5
    ),
    offset=st.sampled_from([0.0, 0.5]),
    boundary=st.sampled_from([-1, 0, 8]),
    one_list=st.booleans(),
)
def test_best_iou_is_that_of_all_anchors(
    boxes: list[tuple[float, ...]], offset: float, boundary: int, one_list: bool
) -> None:
    """The closed form against Detectron2's anchors, one by one."""
    width, height, strides = 96, 64, [8, 16]
    sizes = [[12.0, 30.0]] if one_list else [[12.0, 20.0], [40.0]]
    ratios = [[0.5, 1.0, 2.0]]
    xywh = np.array(boxes) * [width, height, width, height]
    objects = ObjectBoxes(xywh, np.tile([width, height], (len(xywh), 1)))
    ours = Anchors(strides, sizes, ratios, offset, boundary).best_iou(objects)

    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=ratios, strides=strides, offset=offset
    )
    maps = [torch.zeros(1, 1, height // stride, width // stride) for stride in strides]
    anchors = Boxes.cat(generator(maps))
    if boundary >= 0:
        anchors = anchors[anchors.inside_box((height, width), boundary)]
    truth = Boxes(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
    theirs = pairwise_iou(truth, anchors).max(dim=1).values.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_small_pedestrians_are_warned_of_and_a_larger_input_proposed() -> None:
    """768x576 frames with people of 31x90 pixels: 8x22 at Mini VID's size."""
    rng = np.random.default_rng(1)
    people = objects_of([(31 * f, 90 * f) for f in rng.uniform(0.7, 1.5, 200)], (768, 576))
    small = InputSize(128, 192)
    assert is_too_small(people.resized(small), 8)
    line = too_small_line(people.resized(small), 8)
    assert "the median is 8x2" in line and "\n" not in line
    proposed = propose_input(people, small, 8)
    assert proposed is not None
    assert proposed.short_edge % 32 == proposed.max_size % 32 == 0
    larger = people.resized(proposed)
    assert np.median(larger.side) >= 32 and not is_too_small(larger, 8)
    assert np.median(people.resized(InputSize(proposed.short_edge - 32, 9999)).side) < 32
    assert propose_input(people, proposed, 8) is None


def test_frames_are_not_enlarged_without_end() -> None:
    """Objects of 4x4 pixels do not become visible at any size."""
    specks = objects_of([(4, 4)] * 9, (320, 240))
    proposed = propose_input(specks, InputSize(128, 192), 8)
    assert proposed is not None and proposed.of_frame(320, 240) == (640, 480)
    assert is_too_small(specks.resized(proposed), 8)
    assert propose_input(specks, proposed, 8) is None


def test_the_long_edge_does_not_hold_the_short_one_back() -> None:
    wide = objects_of([(20, 20)] * 9, (1280, 320))
    proposed = propose_input(wide, InputSize(128, 192), 8)
    assert proposed is not None and proposed.of_frame(1280, 320)[1] == proposed.short_edge


def test_no_warning_without_objects() -> None:
    assert not is_too_small(ObjectBoxes.from_records([]), 8)


@pytest.mark.parametrize("sizes", [[[64, 128, 256, 512]], [[32], [64], [128], [256], [512]]])
def test_proposed_anchors_match_more(sizes: list[list[float]]) -> None:
    rng = np.random.default_rng(2)
    people = objects_of([(f, 2.9 * f) for f in rng.uniform(12, 30, 300)], (640, 480))
    strides = [8] if len(sizes) == 1 else [4, 8, 16, 32, 64]
    anchors = Anchors(strides, sizes, [[0.5, 1.0, 2.0]])
    found = propose_anchors(people, anchors, 0.7)
    assert found is not None
    assert [len(s) for s in found.sizes] == [len(s) for s in sizes], "the head keeps its shape"
    assert len(found.ratios[0]) == 3
    flat = [size for level in found.sizes for size in level]
    assert all(b >= 1.15 * a for a, b in itertools.pairwise(flat))
    if len(sizes) > 1:
        assert flat == pytest.approx([flat[0] * size / 32 for [size] in sizes], rel=0.05)
    before, after = ((a.best_iou(people) >= 0.7).mean() for a in (anchors, found))
    assert after > before + 0.15
    # Proposed once, they are found good.
    assert propose_anchors(people, found, 0.7) is None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.5, 300), st.floats(0.5, 300)), min_size=1, max_size=20),
    st.integers(1, 5),
)
def test_proposals_never_match_fewer(sizes: list[tuple[float, float]], number: int) -> None:
    """Any objects, of one size too, give distinct positive sizes, or none."""
    objects = objects_of(sizes, (400, 400))
    anchors = Anchors([8], [[16.0 * 2**i for i in range(number)]], [[0.5, 1.0, 2.0]])
    found = propose_anchors(objects, anchors, 0.5)
    if found is None:
        return
    assert len(set(found.sizes[0])) == number and min(found.sizes[0]) > 0
    assert min(found.ratios[0]) > 0
    before, after = ((a.best_iou(objects) >= 0.5).mean() for a in (anchors, found))
    assert after > before
