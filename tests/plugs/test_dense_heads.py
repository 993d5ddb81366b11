"""Every one-stage head that is registered, with each kind of towers."""

from __future__ import annotations

import pytest
import torch
import whole_detector
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from registered import (
    assert_same_weights,
    by_config,
    by_constructor,
    quick_config,
    without_gradient,
)
from torch import Tensor

from clab_d2.modeling import DENSE_HEAD_REGISTRY, DenseHead
from clab_d2.modeling.dense_heads.base import TOWERS

SHAPES = {
    "s8": ShapeSpec(channels=16, stride=8),
    "s16": ShapeSpec(channels=16, stride=16),
}

pytestmark = [
    pytest.mark.parametrize("name", DENSE_HEAD_REGISTRY.names()),
    pytest.mark.parametrize("towers", TOWERS),
]


def config(name: str, towers: str, *options: object) -> CfgNode:
    return quick_config(
        *("MODEL.META_ARCHITECTURE", "TemporalDense", "MODEL.AGGREGATION.PREDICTIONS", ""),
        *("MODEL.DENSE.HEAD", name, "MODEL.DENSE.TOWERS", towers),
        *options,
    )


@pytest.fixture
def head(name: str, towers: str) -> DenseHead:
    return build(name, towers)


def build(name: str, towers: str) -> DenseHead:
    sizes = ("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32]])
    return by_config(DENSE_HEAD_REGISTRY.get(name), config(name, towers, *sizes), SHAPES)


def maps(number: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((number, 16, *size), generator=generator) for size in ((6, 8), (3, 4))]


def truth(*boxes: tuple[float, float, float, float]) -> Instances:
    return Instances(
        (48, 64),
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        gt_classes=torch.arange(len(boxes)),
    )


def losses(head: DenseHead, targets: list[Instances]) -> dict[str, Tensor]:
    with EventStorage():
        return head.detection_losses(head(maps(len(targets))), targets)


def test_built_by_config_and_by_constructor_alike(name: str, towers: str) -> None:
    entry, cfg = DENSE_HEAD_REGISTRY.get(name), config(name, towers)
    shapes = {"c5": ShapeSpec(channels=32, stride=16)}
    assert_same_weights(by_config(entry, cfg, shapes), by_constructor(entry, cfg, shapes))


def test_a_prediction_for_each_anchor(head: DenseHead) -> None:
    output = head(maps(2))
    for level, (height, width) in enumerate(((6, 8), (3, 4))):
        anchors = output.anchors[level]
        assert len(anchors) % (height * width) == 0
        for part, dim in zip(output.predictions, head.dims, strict=True):
            assert part[level].shape == (2, len(anchors), dim)
        for tower in output.towers[level]:
            assert tower.shape[0] == 2 and tower.shape[2:] == (height, width)


def test_scores_begin_low(head: DenseHead) -> None:
    output = head.eval()(maps(1))
    for level in zip(*output.predictions, strict=True):
        assert head.best_scores(level).max() < 0.2


def test_best_score_is_that_of_the_best_class(head: DenseHead) -> None:
    predictions = [torch.randn(7, dim) for dim in head.dims]
    expected = head.score_logits(predictions).sigmoid().amax(dim=1)
    torch.testing.assert_close(head.best_scores(predictions), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter(head: DenseHead) -> None:
    sum(losses(head, [truth((4, 4, 30, 30)), truth()]).values()).backward()
    assert without_gradient(head) == []


def test_steps_lower_the_loss(head: DenseHead) -> None:
    """To a small part of what it was, so that labels, anchors and boxes agree."""
    targets = [truth((4, 4, 30, 30), (20, 2, 60, 44)), truth((30, 20, 50, 40))]
    head.loss_normalizer.fill_(10.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        head.loss_normalizer.fill_(10.0)
        loss = sum(losses(head, targets).values())
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * history[0]


def test_running_mean_is_resumed(head: DenseHead, name: str, towers: str) -> None:
    losses(head, [truth((4, 4, 30, 30))])
    again = build(name, towers)
    assert again.loss_normalizer != head.loss_normalizer
    again.load_state_dict(head.state_dict())
    assert again.loss_normalizer == head.loss_normalizer


def test_detector_with_aggregation_on_a_pyramid(name: str, towers: str) -> None:
    cfg = whole_detector.on_a_pyramid(
        config(name, towers, "MODEL.AGGREGATION.PREDICTIONS", "DualAffinity")
    )
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128]]
    whole_detector.check_gradients(cfg)
    whole_detector.check_memory_equals_recomputing(cfg)
    whole_detector.check_optimized(cfg)
