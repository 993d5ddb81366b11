"""Every aggregation on feature maps that is registered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import whole_detector
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from registered import (
    assert_same_weights,
    by_config,
    by_constructor,
    quick_config,
    without_gradient,
)
from torch import Tensor

from clab_d2.modeling import MAP_AGGREGATION_REGISTRY, FrameMaps, MapAggregation

NAMES = MAP_AGGREGATION_REGISTRY.names()
SHAPES = {"fine": ShapeSpec(channels=32, stride=8), "coarse": ShapeSpec(channels=32, stride=16)}

pytestmark = pytest.mark.parametrize("name", NAMES)


def config(name: str, *options: object) -> CfgNode:
    """A single-frame detector but for the aggregation on maps."""
    return quick_config(
        *("MODEL.AGGREGATION.MAPS", name, "MODEL.AGGREGATION.ROI_FEATURES", ""),
        *("MODEL.AGGREGATION.BOX_FEATURES", "", "MODEL.CONTRASTIVE.ENABLED", False),
        *options,
    )


@pytest.fixture
def part(name: str) -> MapAggregation:
    return by_config(MAP_AGGREGATION_REGISTRY.get(name), config(name), SHAPES).eval()


def random_batch(
    seed: int, number: int, size: tuple[int, int] = (64, 96)
) -> tuple[Tensor, dict[str, Tensor]]:
    """Normalised images of N frames and their maps."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    images = torch.randn((number, 3, height, width), generator=generator)
    maps = {
        key: torch.randn(
            (number, s.channels, height // s.stride, width // s.stride), generator=generator
        )
        for key, s in SHAPES.items()
    }
    return images, maps


def frames_of(part: MapAggregation, images: Tensor, maps: dict[str, Tensor]) -> list[FrameMaps]:
    encoded = part.encode(images, maps)
    return [
        FrameMaps(
            {key: value[i : i + 1] for key, value in maps.items()},
            tuple(images.shape[-2:]),
            [tensor[i : i + 1] for tensor in encoded],
        )
        for i in range(len(images))
    ]


def test_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = MAP_AGGREGATION_REGISTRY.get(name), config(name)
    assert_same_weights(by_config(entry, cfg, SHAPES), by_constructor(entry, cfg, SHAPES))


def test_maps_keep_their_shapes_whatever_the_references_sizes(part: MapAggregation) -> None:
    key, *references = frames_of(part, *random_batch(1, 3))
    others = frames_of(part, *random_batch(2, 2, (80, 64)))
    result = part(key, [*references, *others], [1, 2, 1, 1])
    assert {k: v.shape for k, v in result.items()} == {k: v.shape for k, v in key.maps.items()}
    assert all(torch.isfinite(value).all() for value in result.values())


def test_gradients_reach_every_parameter(part: MapAggregation) -> None:
    images, maps = random_batch(1, 3)
    maps = {key: value.requires_grad_() for key, value in maps.items()}
    key, *references = frames_of(part.train(), images, maps)
    result = part(key, references, [1, 1])
    sum(value.square().sum() for value in result.values()).backward()
    assert without_gradient(part) == []
    if part.needs_references:
        assert all(value.grad[1:].any() for value in maps.values()), "references learn, too"


def test_encoding_a_batch_equals_encoding_its_frames(part: MapAggregation) -> None:
    images, maps = random_batch(1, 3)
    together = part.encode(images, maps)
    single = [
        part.encode(images[i : i + 1], {k: v[i : i + 1] for k, v in maps.items()})
        for i in range(len(images))
    ]
    for number, tensor in enumerate(together):
        torch.testing.assert_close(tensor, torch.cat([encoded[number] for encoded in single]))


def test_counts_equal_listing_again_in_any_order(part: MapAggregation) -> None:
    key, left, right = frames_of(part, *random_batch(1, 3))
    counted = part(key, [left, right], [3, 1])
    listed = part(key, [left, right, left, left], [1, 1, 1, 1])
    once = part(key, [left, right], [1, 1])
    for name, value in counted.items():
        torch.testing.assert_close(value, listed[name], rtol=1e-4, atol=1e-5)
        if part.needs_references:
            assert not torch.allclose(value, once[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("box_features", ["", "SELSA"])
def test_memory_equals_recomputing_everything(name: str, box_features: str) -> None:
    cfg = config(name, "MODEL.AGGREGATION.BOX_FEATURES", box_features)
    whole_detector.check_memory_equals_recomputing(cfg)


def test_feature_pyramid(name: str) -> None:
    cfg = whole_detector.on_a_pyramid(config(name))
    whole_detector.check_memory_equals_recomputing(cfg)
    whole_detector.check_gradients(cfg)


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
