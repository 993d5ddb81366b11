"""Every aggregation on selected predictions that is registered."""

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

from clab_d2.modeling import PREDICTION_AGGREGATION_REGISTRY, PredictionAggregation

DIM, CLASSES = 32, 5

pytestmark = pytest.mark.parametrize("name", PREDICTION_AGGREGATION_REGISTRY.names())


def config(name: str, *options: object) -> CfgNode:
    """A one-stage detector that aggregates over predictions alone."""
    return quick_config(
        *("MODEL.META_ARCHITECTURE", "TemporalDense", "MODEL.AGGREGATION.PREDICTIONS", name),
        *("MODEL.CONTRASTIVE.ENABLED", False),
        # Of untrained detections the last nearly tie, and rounding orders them.
        *("TEST.DETECTIONS_PER_IMAGE", 40),
        *options,
    )


@pytest.fixture
def part(name: str) -> PredictionAggregation:
    entry = PREDICTION_AGGREGATION_REGISTRY.get(name)
    return by_config(entry, config(name), DIM, CLASSES).eval()


def predictions(seed: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features of both towers, and logits."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((number, 2 * DIM + CLASSES), generator=generator)
    return rows[:, :DIM], rows[:, DIM : 2 * DIM], rows[:, 2 * DIM :]


def test_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = PREDICTION_AGGREGATION_REGISTRY.get(name), config(name)
    assert_same_weights(
        by_config(entry, cfg, DIM, CLASSES), by_constructor(entry, cfg, DIM, CLASSES)
    )


@pytest.mark.parametrize("counts", [None, [1.0, 2.0, 1.0, 1.0, 3.0, 1.0]])
@pytest.mark.parametrize("number", [4, 1, 0])
def test_a_new_score_for_each_class(
    part: PredictionAggregation, counts: list[float] | None, number: int
) -> None:
    references = part.encode_references(*predictions(2, 6))
    result = part(
        *predictions(1, number), references, None if counts is None else torch.tensor(counts)
    )
    assert result.shape == (number, CLASSES)
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("counts", [None, []])
def test_no_reference_predictions(part: PredictionAggregation, counts: list[float] | None) -> None:
    references = part.encode_references(*predictions(2, 0))
    result = part(
        *predictions(1, 4), references, None if counts is None else torch.tensor(counts)
    )
    assert result.shape == (4, CLASSES)
    assert torch.isfinite(result).all()


def test_gradients_reach_every_parameter(part: PredictionAggregation) -> None:
    own = [x.clone().requires_grad_() for x in predictions(1, 4)]
    others = [x.clone().requires_grad_() for x in predictions(2, 6)]
    result = part.train()(*own, part.encode_references(*others), None)
    result.square().sum().backward()
    assert without_gradient(part) == []
    assert own[0].grad.any()
    if part.needs_references:
        assert others[0].grad.any(), "references learn, too"


def test_encoding_frames_one_by_one_and_joining_them_equals_encoding_them_together(
    part: PredictionAggregation,
) -> None:
    rows = predictions(2, 9)
    together = part.encode_references(*rows)
    split = zip(*(tensor.split([4, 0, 5]) for tensor in rows), strict=True)
    single = [part.encode_references(*frame) for frame in split]
    for number, tensor in enumerate(together):
        joined = torch.cat([encoded[number] for encoded in single], dim=-2)
        torch.testing.assert_close(joined, tensor)


def test_counts_equal_listing_again_in_any_order(part: PredictionAggregation) -> None:
    own, others = predictions(1, 4), predictions(2, 3)
    counts = torch.tensor([1, 3, 2])
    again = [tensor[[1, 2, 0, 1, 2, 1]] for tensor in others]
    counted = part(*own, part.encode_references(*others), counts.float())
    listed = part(*own, part.encode_references(*again), None)
    once = part(*own, part.encode_references(*others), None)
    torch.testing.assert_close(counted, listed, rtol=1e-4, atol=1e-5)
    if part.needs_references:
        assert not torch.allclose(counted, once, rtol=1e-4, atol=1e-5)
        ones = part(*own, part.encode_references(*others), torch.ones(3))
        torch.testing.assert_close(ones, once)


def test_memory_equals_recomputing_everything(name: str) -> None:
    whole_detector.check_memory_equals_recomputing(config(name))


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


def test_references_change_detections_where_it_needs_them(name: str) -> None:
    whole_detector.check_aggregates(config(name))
