"""Every backbone of ours that is registered with Detectron2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import whole_detector
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from registered import assert_same_weights, by_config, by_constructor, ours, quick_config

#: These stand for many networks, each with its own settings: test_architectures.py has eleven.
MANY_NETWORKS = {"build_fpn_backbone", "build_timm_backbone"}
NAMES = [name for name in ours(BACKBONE_REGISTRY) if name not in MANY_NETWORKS]
pytestmark = pytest.mark.parametrize("name", NAMES)
PIXELS = ShapeSpec(channels=3)

#: What networks need beside their name, and what makes them small.
OPTIONS: dict[str, list[Any]] = {
    "build_light_fpn_backbone": [
        *("MODEL.TIMM.NAME", "test_resnet", "MODEL.FPN.IN_FEATURES", ["res3", "res4"]),
        *("MODEL.FPN.OUT_CHANNELS", 16),
    ],
    "build_regnet_backbone": ["MODEL.REGNET.NAME", "Y-200MF", "INPUT.FORMAT", "BGR"],
    "build_swin_backbone": ["MODEL.SWIN.SIZE", "T"],
    "build_vit_backbone": ["MODEL.VIT.SIZE", "Ti"],
}


def config(name: str) -> CfgNode:
    """A detector on the last map that the backbone returns, whose branch taps the first."""
    own = OPTIONS.get(name, [])
    cfg = quick_config("MODEL.BACKBONE.NAME", name, *own)
    names = list(BACKBONE_REGISTRY.get(name)(cfg, PIXELS).output_shape())
    return quick_config(
        *("MODEL.BACKBONE.NAME", name, *own, "MODEL.CONTRASTIVE.IN_FEATURE", names[0]),
        *("MODEL.RPN.IN_FEATURES", names[-1:], "MODEL.ROI_HEADS.IN_FEATURES", names[-1:]),
        # Of untrained detections the last nearly tie, and rounding orders them.
        *("TEST.DETECTIONS_PER_IMAGE", 40),
    )


@pytest.fixture
def backbone(name: str) -> Backbone:
    return by_config(BACKBONE_REGISTRY.get(name), config(name), PIXELS).eval()


def padded(backbone: Backbone, number: int, size: tuple[int, int]) -> torch.Tensor:
    step = max(backbone.size_divisibility, 1)
    height, width = (-(-side // step) * step for side in size)
    return torch.randn((number, 3, height, width), generator=torch.Generator().manual_seed(0))


def test_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = BACKBONE_REGISTRY.get(name), config(name)
    built = by_config(entry, cfg, PIXELS)
    assert isinstance(built, Backbone)
    if isinstance(entry, type):  # a function is a config's alone; what it returns is a class
        assert_same_weights(built, by_constructor(entry, cfg, PIXELS))


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 50)])
def test_maps_are_what_output_shape_says(backbone: Backbone, size: tuple[int, int]) -> None:
    images = padded(backbone, 2, size)
    maps = backbone(images)
    shapes = backbone.output_shape()
    assert set(shapes) <= set(maps)
    for name, shape in shapes.items():
        height, width = (-(-side // shape.stride) for side in images.shape[-2:])
        assert maps[name].shape == (2, shape.channels, height, width)


def test_a_batch_equals_its_images_one_by_one(backbone: Backbone) -> None:
    images = padded(backbone, 3, (64, 96))
    together = backbone(images)
    for number in range(3):
        single = backbone(images[number : number + 1])
        for name in backbone.output_shape():
            torch.testing.assert_close(
                single[name], together[name][number : number + 1], rtol=1e-4, atol=1e-4
            )


def test_trains(name: str) -> None:
    whole_detector.check_gradients(config(name))


def test_a_batch_of_clips_equals_the_clips_one_by_one(name: str) -> None:
    whole_detector.check_batch_equals_single_clips(config(name))


def test_memory_equals_recomputing_everything(name: str) -> None:
    whole_detector.check_memory_equals_recomputing(config(name))


def test_optimized_for_inference_detects_the_same(name: str) -> None:
    whole_detector.check_optimized(config(name))


def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    whole_detector.check_yaml_round_trip(config(name), tmp_path)


def test_half_precision(name: str) -> None:
    whole_detector.check_half_precision(config(name))
