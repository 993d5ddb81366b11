"""Every aggregation on box features that is registered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import whole_detector
from detectron2.config import CfgNode
from registered import (
    assert_same_weights,
    by_config,
    by_constructor,
    quick_config,
    without_gradient,
)
from torch import Tensor

from clab_d2.modeling import BOX_AGGREGATION_REGISTRY, BoxAggregation

DIM = 32

pytestmark = pytest.mark.parametrize("name", BOX_AGGREGATION_REGISTRY.names())


def config(name: str, *options: object) -> CfgNode:
    """A detector that aggregates over box features alone."""
    return quick_config(
        *("MODEL.AGGREGATION.ROI_FEATURES", "", "MODEL.AGGREGATION.BOX_FEATURES", name),
        *("MODEL.CONTRASTIVE.ENABLED", False),
        *options,
    )


@pytest.fixture
def part(name: str) -> BoxAggregation:
    return by_config(BOX_AGGREGATION_REGISTRY.get(name), config(name), DIM).eval()


def features(seed: int, number: int) -> Tensor:
    return torch.randn((number, DIM), generator=torch.Generator().manual_seed(seed))


def test_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = BOX_AGGREGATION_REGISTRY.get(name), config(name)
    assert_same_weights(by_config(entry, cfg, DIM), by_constructor(entry, cfg, DIM))


@pytest.mark.parametrize("counts", [None, [1.0, 2.0, 1.0, 1.0, 3.0, 1.0]])
@pytest.mark.parametrize("num_rois", [5, 1, 0])
def test_box_features_keep_their_shape(
    part: BoxAggregation, counts: list[float] | None, num_rois: int
) -> None:
    references = part.encode_references(features(2, 6))
    result = part(
        features(1, num_rois), references, None if counts is None else torch.tensor(counts)
    )
    assert result.shape == (num_rois, DIM)
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("counts", [None, []])
def test_no_reference_rois(part: BoxAggregation, counts: list[float] | None) -> None:
    """The RPN may find nothing in all of the reference frames."""
    references = part.encode_references(features(2, 0))
    result = part(features(1, 5), references, None if counts is None else torch.tensor(counts))
    assert result.shape == (5, DIM)
    assert torch.isfinite(result).all()


def test_gradients_reach_every_parameter(part: BoxAggregation) -> None:
    own, others = features(1, 5).requires_grad_(), features(2, 6).requires_grad_()
    part.train()(own, part.encode_references(others), None).square().sum().backward()
    assert without_gradient(part) == []
    assert own.grad.any()
    if part.needs_references:
        assert others.grad.any(), "references learn, too"


def test_encoding_frames_one_by_one_and_joining_them_equals_encoding_them_together(
    part: BoxAggregation,
) -> None:
    rows = features(2, 9)
    together = part.encode_references(rows)
    single = [part.encode_references(part_rows) for part_rows in rows.split([4, 0, 5])]
    for number, tensor in enumerate(together):
        joined = torch.cat([encoded[number] for encoded in single], dim=-2)
        torch.testing.assert_close(joined, tensor)


def test_counts_equal_listing_again_in_any_order(part: BoxAggregation) -> None:
    own, others = features(1, 5), features(2, 3)
    counts = torch.tensor([1, 3, 2])
    again = others[[1, 2, 0, 1, 2, 1]]
    counted = part(own, part.encode_references(others), counts.float())
    listed = part(own, part.encode_references(again), None)
    once = part(own, part.encode_references(others), None)
    torch.testing.assert_close(counted, listed, rtol=1e-4, atol=1e-5)
    if part.needs_references:
        assert not torch.allclose(counted, once, rtol=1e-4, atol=1e-5)
        ones = part(own, part.encode_references(others), torch.ones(3))
        torch.testing.assert_close(ones, once)


@pytest.mark.parametrize("roi_features", ["", "TemporalRoIAlign"])
def test_memory_equals_recomputing_everything(name: str, roi_features: str) -> None:
    cfg = config(name, "MODEL.AGGREGATION.ROI_FEATURES", roi_features)
    whole_detector.check_memory_equals_recomputing(cfg)


def test_trains(name: str) -> None:
    whole_detector.check_gradients(config(name))


def test_a_batch_of_clips_equals_the_clips_one_by_one(name: str) -> None:
    whole_detector.check_batch_equals_single_clips(config(name))


def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    whole_detector.check_yaml_round_trip(config(name), tmp_path)


def test_half_precision(name: str) -> None:
    whole_detector.check_half_precision(config(name))


def test_unreadable_references(name: str) -> None:
    whole_detector.check_unreadable_references(config(name))
