"""Every aggregation on RoI features that is registered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import whole_detector
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from registered import (
    assert_same_weights,
    by_config,
    by_constructor,
    quick_config,
    without_gradient,
)
from torch import Tensor

from clab_d2.layers.roi_pooling import FastROIPooler
from clab_d2.modeling import ROI_AGGREGATION_REGISTRY, RoIAggregation

CHANNELS, STRIDE, SAMPLES = 32, 16, 2
BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 90.0, 44.0], [0.0, 0.0, 96.0, 64.0]])

pytestmark = pytest.mark.parametrize("name", ROI_AGGREGATION_REGISTRY.names())


def config(name: str, *options: object) -> CfgNode:
    """A detector that aggregates over RoI features alone."""
    return quick_config(
        *("MODEL.AGGREGATION.ROI_FEATURES", name, "MODEL.AGGREGATION.BOX_FEATURES", ""),
        *("MODEL.CONTRASTIVE.ENABLED", False),
        *options,
    )


@pytest.fixture
def part(name: str) -> RoIAggregation:
    return by_config(ROI_AGGREGATION_REGISTRY.get(name), config(name), CHANNELS).eval()


def random_map(seed: int, height: int = 4, width: int = 6) -> Tensor:
    return torch.randn((CHANNELS, height, width), generator=torch.Generator().manual_seed(seed))


def aggregate(
    part: RoIAggregation, feature: Tensor, references: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    pooler = FastROIPooler(7, [1 / STRIDE], SAMPLES, "ROIAlignV2")
    kept = {}
    if not torch.is_grad_enabled() and part.encode_map(feature) is not None:
        kept["encoded"] = [part.encode_map(reference) for reference in references]
    return part(
        pooler([feature[None]], [Boxes(BOXES)]),
        BOXES,
        feature,
        references,
        counts,
        scale=1 / STRIDE,
        sampling_ratio=SAMPLES,
        cat=lambda rows: torch.cat(list(rows)),
        **kept,
    )


def test_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = ROI_AGGREGATION_REGISTRY.get(name), config(name)
    assert_same_weights(by_config(entry, cfg, CHANNELS), by_constructor(entry, cfg, CHANNELS))


@pytest.mark.parametrize("training", [True, False])
def test_roi_features_keep_their_shape_whatever_the_maps_sizes(
    part: RoIAggregation, training: bool
) -> None:
    with torch.set_grad_enabled(training):
        maps = [random_map(2), random_map(3, 5, 4), random_map(4, 1, 1)]
        result = aggregate(part, random_map(1), maps, [1, 2, 1])
    assert result.shape == (len(BOXES), CHANNELS, 7, 7)
    assert torch.isfinite(result).all()


def test_gradients_reach_every_parameter_and_map(part: RoIAggregation) -> None:
    maps = [random_map(seed).requires_grad_() for seed in (1, 2, 3)]
    aggregate(part.train(), maps[0], maps[1:], [1, 1]).square().sum().backward()
    assert without_gradient(part) == []
    assert maps[0].grad.any()
    if part.needs_references:
        assert all(value.grad.any() for value in maps[1:]), "references learn, too"


def test_test_time_equals_training(part: RoIAggregation) -> None:
    """What is faster without gradients gives the same."""
    maps = [random_map(seed) for seed in (1, 2, 3)]
    with torch.no_grad():
        fast = aggregate(part, maps[0], maps[1:], [2, 1])
    torch.testing.assert_close(
        fast, aggregate(part, maps[0], maps[1:], [2, 1]).detach(), rtol=1e-4, atol=1e-5
    )


def test_counts_equal_listing_again_in_any_order(part: RoIAggregation) -> None:
    key, left, right = (random_map(seed) for seed in (1, 2, 3))
    with torch.no_grad():
        counted = aggregate(part, key, [left, right], [3, 1])
        listed = aggregate(part, key, [left, right, left, left], [1, 1, 1, 1])
        once = aggregate(part, key, [left, right], [1, 1])
    torch.testing.assert_close(counted, listed, rtol=1e-4, atol=1e-5)
    if part.needs_references:
        assert not torch.allclose(counted, once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("box_features", ["", "SELSA"])
def test_memory_equals_recomputing_everything(name: str, box_features: str) -> None:
    cfg = config(name, "MODEL.AGGREGATION.BOX_FEATURES", box_features)
    whole_detector.check_memory_equals_recomputing(cfg)


def test_trains(name: str) -> None:
    whole_detector.check_gradients(config(name))


def test_a_batch_of_clips_equals_the_clips_one_by_one(name: str) -> None:
    whole_detector.check_batch_equals_single_clips(config(name))


def test_feature_pyramid(name: str) -> None:
    """Each RoI on its own level, and levels without one."""
    cfg = whole_detector.on_a_pyramid(config(name))
    whole_detector.check_memory_equals_recomputing(cfg)
    whole_detector.check_gradients(cfg)


def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    whole_detector.check_yaml_round_trip(config(name), tmp_path)


def test_half_precision(name: str) -> None:
    whole_detector.check_half_precision(config(name))


def test_unreadable_references(name: str) -> None:
    whole_detector.check_unreadable_references(config(name))
