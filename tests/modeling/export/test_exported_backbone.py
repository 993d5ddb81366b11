from __future__ import annotations

import pytest
import torch

from clab_d2.errors import ConfigError
from clab_d2.modeling.backbones.timm import TimmBackbone
from clab_d2.modeling.export.backbone import FixedSamePadding, exported_backbone

# Small, with five strided convolutions of TensorFlow's padding, as configs/OwnVideos' has.
NAME = "tf_mobilenetv3_small_minimal_100"


@pytest.fixture(scope="module")
def backbone() -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(NAME, ["res3", "res4", "res5"]).eval()


@torch.no_grad()
def test_the_maps_are_those_of_the_backbone(backbone: TimmBackbone) -> None:
    copied = exported_backbone(backbone)
    assert sum(isinstance(part, FixedSamePadding) for part in copied.modules()) == 5
    assert not any(isinstance(part, FixedSamePadding) for part in backbone.modules())
    image = torch.randn(1, 3, 64, 96)
    own, exported = backbone(image), copied(image)
    assert all(torch.equal(own[name], exported[name]) for name in own)


def test_traced_for_any_size_its_maps_are_parts_of_the_image(backbone: TimmBackbone) -> None:
    rows, columns = (torch.export.Dim(name, min=2, max=64) for name in ("rows", "columns"))
    program = torch.export.export(
        exported_backbone(backbone), (torch.randn(1, 3, 64, 96),),
        dynamic_shapes=({2: 32 * rows, 3: 32 * columns},),
    )  # fmt: skip
    image = torch.randn(1, 3, 128, 64)
    own, traced = backbone(image), program.module()(image)
    assert all(torch.equal(own[name], traced[name]) for name in own)


def test_a_size_with_other_padding_is_refused(backbone: TimmBackbone) -> None:
    with pytest.raises(ConfigError, match="a convolution of stride 2 on a map of 15x32 positions"):
        exported_backbone(backbone)(torch.randn(1, 3, 60, 128))
