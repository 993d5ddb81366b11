from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from clab_d2 import get_clab_cfg
from clab_d2.errors import ConfigError
from clab_d2.modeling import DENSE_HEAD_REGISTRY, DenseHead
from clab_d2.modeling.dense_heads.base import DensePredictions
from clab_d2.modeling.dense_heads.selection import Selection

SIZE = (48, 64)
LEVELS = ((6, 8), (3, 4))


@pytest.fixture(params=["FCOS", "RetinaNet"])
def head(request) -> DenseHead:
    cfg = get_clab_cfg()
    cfg.MODEL.DENSE.DIM, cfg.MODEL.RETINANET.NUM_CONVS = 4, 1
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    shapes = {f"s{stride}": ShapeSpec(channels=4, stride=stride) for stride in (8, 16)}
    torch.manual_seed(0)
    return DENSE_HEAD_REGISTRY.get(request.param)(cfg, shapes).eval()


@pytest.fixture
def output(head: DenseHead) -> DensePredictions:
    """Decisive predictions of two frames: drawn as usual their scores nearly tie."""
    torch.manual_seed(1)
    output = head([torch.randn(2, 4, *size) for size in LEVELS])
    for part in output.predictions:
        for level in part:
            level.data.normal_()
    return output


def everything(head: DenseHead, output: DensePredictions, number: int) -> tuple[Tensor, ...]:
    """Boxes, score logits and tower features of all of a frame's predictions, written out."""
    rows: list[list[Tensor]] = [[], [], [], []]
    for level, (height, width) in enumerate(LEVELS):
        anchors = output.anchors[level].tensor
        per_position = len(anchors) // (height * width)
        parts = [part[level][number] for part in output.predictions]
        for index, anchor in enumerate(anchors):
            row, column = divmod(index // per_position, width)
            boxes = Boxes(head.decode(parts[1][index : index + 1], anchor[None]))
            boxes.clip(SIZE)
            rows[0].append(boxes.tensor[0])
            rows[1].append(head.score_logits([part[index] for part in parts]))
            rows[2].append(output.towers[level].cls[number, :, row, column])
            rows[3].append(output.towers[level].box[number, :, row, column])
    return tuple(torch.stack(part) for part in rows)


def test_what_is_selected_is_of_one_prediction(head, output):
    """Box, scores and features all of the same, on every level."""
    selected = Selection(12, 40)(head, output, [SIZE, SIZE])
    for number, own in enumerate(selected):
        boxes, logits, cls, box = everything(head, output, number)
        for i in range(len(own)):
            (index,) = (boxes == own.pred_boxes.tensor[i]).all(dim=1).nonzero().flatten().tolist()
            torch.testing.assert_close(own.score_logits[i], logits[index])
            assert torch.equal(own.cls_features[i], cls[index])
            assert torch.equal(own.box_features[i], box[index])


def test_the_most_confident_that_do_not_overlap(head, output):
    own = Selection(12, 40, nms_thresh=0.4)(head, output, [SIZE, SIZE])[1]
    boxes, logits, _, _ = everything(head, output, 1)
    kept: list[int] = []
    for index in logits.amax(dim=1).argsort(descending=True).tolist():
        one = Boxes(boxes[index : index + 1])
        if one.nonempty() and (pairwise_iou(one, Boxes(boxes[kept])) <= 0.4).all():
            kept.append(index)
    assert torch.equal(own.pred_boxes.tensor, boxes[kept[:12]])
    scores = own.score_logits.amax(dim=1)
    assert len(own) == 12 and (scores[:-1] >= scores[1:]).all()


def test_best_fits_of_each_object_come_along_in_training(head, output):
    boxes, logits, _, _ = everything(head, output, 0)
    unlikely = logits.amax(dim=1).argsort()[:3]
    boxes_of_objects = boxes[unlikely][Boxes(boxes[unlikely]).nonempty()]
    truth = Instances(
        SIZE,
        gt_boxes=Boxes(boxes_of_objects),
        gt_classes=torch.zeros(len(boxes_of_objects), dtype=torch.long),
    )
    selection = Selection(2, 10, num_per_object=2)
    chosen = selection(head, output, [SIZE, SIZE], [truth, truth[:0]])
    fit = pairwise_iou(truth.gt_boxes, chosen[0].pred_boxes).amax(dim=1)
    assert (fit > 0.99).all()
    assert len(chosen[0]) <= 2 + 2 * len(truth)
    assert len(chosen[1]) == 2, "nothing more where there is no object"
    unique = {tuple(row) for row in chosen[0].pred_boxes.tensor.tolist()}
    assert len(unique) == len(chosen[0])


def test_nothing_in_the_padding(head, output):
    """Boxes of positions outside the image have no extent in it."""
    small = (16, 16)
    own = Selection(60, 60)(head, output, [small, small])[0]
    assert len(own) > 0
    assert own.pred_boxes.nonempty().all() and own.pred_boxes.tensor.max() <= 16


def test_gradients_go_to_the_towers_alone(head, output):
    own = Selection(5, 40)(head, output, [SIZE, SIZE])[0]
    assert own.cls_features.requires_grad and own.box_features.requires_grad
    assert not own.score_logits.requires_grad and not own.pred_boxes.tensor.requires_grad


@pytest.mark.parametrize(
    "wrong", [{"num_predictions": 0}, {"num_candidates": 3}, {"nms_thresh": 0}]
)
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=r"MODEL\.DENSE\.SELECT"):
        Selection(**{"num_predictions": 5, "num_candidates": 50, **wrong})
