from __future__ import annotations

import math

import pytest
import torch
from detectron2.structures import Boxes
from plain_contrast import GATE, make_frames, make_loss, plain_loss, things
from torchvision.ops import box_iou

from clab_d2.errors import ConfigError
from clab_d2.modeling.contrastive.class_contrast import BoxJitter, ClassContrast
from clab_d2.modeling.contrastive.embedding import RoIEmbedding


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("none", [0, 1, 1, 1]), ("linear", [0, 0.6, 0.8, 1]),
     ("exp", [0, math.exp(0.6) - 1, math.exp(0.8) - 1, math.e - 1])],
)  # fmt: skip
def test_weights_of_anchors(weighting, expected):
    loss = ClassContrast(
        RoIEmbedding(4, 4, 4, 4, 16), BoxJitter(), iou_gate=0.6, iou_weighting=weighting
    )
    weights = loss.anchor_weights(torch.tensor([0.59, 0.6, 0.8, 1.0]))
    assert weights.tolist() == pytest.approx(expected)


def test_gate_keeps_loose_boxes_from_being_anchors_but_not_from_being_others():
    frames, loss = make_frames(), make_loss("ClassContrast")
    all_things = things("ClassContrast", loss, frames)
    assert {thing.iou >= GATE for thing in all_things} == {True, False}
    tight = [thing for thing in all_things if thing.iou >= GATE]
    with_loose = loss(frames) * len(all_things)
    assert abs(with_loose - plain_loss("ClassContrast", tight) * len(tight)) > 0.1
    loss.iou_gate = 0.0
    assert loss(frames) * len(all_things) > with_loose


def test_jittered_copies_stay_with_their_objects_and_in_the_image():
    torch.manual_seed(0)
    boxes = Boxes(torch.tensor([[100.0, 50.0, 200.0, 90.0], [0.0, 0.0, 30.0, 60.0]]))
    copies = BoxJitter(copies=200, amount=0.3)(boxes, (100, 210))
    assert len(copies) == 400
    left, top, right, bottom = copies.tensor.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 210 and bottom.max() <= 100
    overlaps = box_iou(copies.tensor, boxes.tensor)
    # copy 0 of both boxes, copy 1 of both, ...
    assert (overlaps.argmax(1) == torch.arange(400) % 2).all()
    best = overlaps.max(1).values
    assert 0.2 < best.min() < 0.5 < 0.9 < best.max() < 1


def test_no_jitter_gives_the_boxes_themselves():
    boxes = Boxes(torch.tensor([[10.0, 5.0, 20.0, 9.0]]))
    torch.testing.assert_close(BoxJitter(2, 0.0)(boxes, (99, 99)).tensor, boxes.tensor.repeat(2, 1))
    assert len(BoxJitter(0)(boxes, (99, 99))) == 0
    assert len(BoxJitter(3)(boxes[:0], (99, 99))) == 0


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: BoxJitter(copies=-1), "JITTER.COPIES"),
        (lambda: BoxJitter(amount=0.5), "JITTER.AMOUNT"),
        (lambda: BoxJitter(amount=-0.1), "JITTER.AMOUNT"),
        (lambda: make_loss_with(iou_gate=1.5), "IOU_GATE"),
        (lambda: make_loss_with(iou_weighting="cubic"), "IOU_WEIGHTING"),
    ],
)
def test_impossible_values_name_the_key(make, key):
    with pytest.raises(ConfigError, match=rf"MODEL\.CONTRASTIVE\.{key}"):
        make()


def make_loss_with(**kwargs):
    return ClassContrast(RoIEmbedding(4, 4, 4, 4, 16), BoxJitter(), **kwargs)


