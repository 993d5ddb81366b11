"""From a network's maps to those that detection takes: one scale, or a feature pyramid."""

from __future__ import annotations

import math
from itertools import pairwise

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone import SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from clab_d2.errors import ConfigError


class SingleScaleBackbone(Backbone):
    """A bottom-up network and a neck: one 3x3 conv with bias, then ReLU, on one of its stages.

    With a ResNet whose res5 is dilated this is the paper's "DC5" backbone. It also returns the
    bottom-up stages, which the forward pass makes anyway, for the contrastive branch to tap.
    """

    def __init__(
        self, bottom_up: Backbone, in_feature: str, out_channels: int, out_feature: str = "c5"
    ) -> None:
        """
        Args:
            bottom_up: network that returns a dict of feature maps.
            in_feature: which of them the neck takes.
            out_channels: channels of the neck's output.
            out_feature: name of the neck's output.
        """
        super().__init__()
        shapes = bottom_up.output_shape()
        if in_feature not in shapes:
            raise ConfigError(
                f"MODEL.NECK.IN_FEATURE {in_feature!r} is not a feature of the backbone; "
                f"choose one of {sorted(shapes)}"
            )
        self.bottom_up = bottom_up
        self.in_feature = in_feature
        self.out_feature = out_feature
        self.neck = nn.Conv2d(shapes[in_feature].channels, out_channels, 3, padding=1)
        weight_init.c2_xavier_fill(self.neck)
        self._shapes = {
            **shapes,
            out_feature: ShapeSpec(channels=out_channels, stride=shapes[in_feature].stride),
        }

    @property
    def size_divisibility(self) -> int:
        """Images are zero-padded to a multiple of the neck's stride, as the release pads them, and
        of what the network asks for."""
        return math.lcm(
            self._shapes[self.out_feature].stride, max(self.bottom_up.size_divisibility, 1)
        )

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W).

        Returns:
            The bottom-up feature maps by name, and the neck's output.
        """
        features = self.bottom_up(x)
        features[self.out_feature] = F.relu(self.neck(features[self.in_feature]))
        return features


class FeaturePyramid(FPN):
    """Detectron2's pyramid, with images padded to what the network below asks for, too."""

    @property
    def size_divisibility(self) -> int:
        return math.lcm(super().size_divisibility, max(self.bottom_up.size_divisibility, 1))


class PlainFeaturePyramid(SimpleFeaturePyramid):
    """ViTDet's pyramid from a single map, for networks whose maps all have one stride."""

    @property
    def bottom_up(self) -> Backbone:
        """The network below, under the name that other backbones have for it."""
        return self.net

    @property
    def size_divisibility(self) -> int:
        return math.lcm(self._size_divisibility, max(self.net.size_divisibility, 1))


# Detectron2's pyramid from one map can multiply its resolution by these.
_SCALES = (4.0, 2.0, 1.0, 0.5)


#: Backbones that put a neck on the network of ``MODEL.BACKBONE.BOTTOM_UP``.
NECKS = ("build_single_scale_backbone", "build_fpn_backbone")


@BACKBONE_REGISTRY.register()
def build_single_scale_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SingleScaleBackbone:
    """The network of ``MODEL.BACKBONE.BOTTOM_UP`` and the neck of ``MODEL.NECK``."""
    return SingleScaleBackbone(
        build_bottom_up(cfg, input_shape),
        in_feature=cfg.MODEL.NECK.IN_FEATURE,
        out_channels=cfg.MODEL.NECK.OUT_CHANNELS,
    )


@BACKBONE_REGISTRY.register()
def build_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network of ``MODEL.BACKBONE.BOTTOM_UP`` under the pyramid of ``MODEL.FPN``.

    From a single map of ``FPN.IN_FEATURES``, as plain ViTs have one, it is ViTDet's pyramid, with
    layer norm where ``FPN.NORM`` is empty.
    """
    bottom_up = build_bottom_up(cfg, input_shape)
    shapes = bottom_up.output_shape()
    fpn = cfg.MODEL.FPN
    strides = [shapes[name].stride for name in fpn.IN_FEATURES]
    contiguous = all(b == 2 * a for a, b in pairwise(strides))
    if not strides or not contiguous or not math.log2(strides[0]).is_integer():
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {list(fpn.IN_FEATURES)} have strides {strides}; a pyramid "
            "takes maps of 2**n, each twice the stride of the one before, or one map alone"
        )
    if len(strides) > 1:
        return FeaturePyramid(
            bottom_up,
            in_features=fpn.IN_FEATURES,
            out_channels=fpn.OUT_CHANNELS,
            norm=fpn.NORM,
            top_block=_half_of(strides[-1]),
            fuse_type=fpn.FUSE_TYPE,
        )
    return PlainFeaturePyramid(
        bottom_up,
        in_feature=fpn.IN_FEATURES[0],
        out_channels=fpn.OUT_CHANNELS,
        scale_factors=[scale for scale in _SCALES if strides[0] >= scale],
        top_block=_half_of(int(strides[0] / _SCALES[-1])),
        norm=fpn.NORM or "LN",  # Detectron2's can't do without one
    )


def _half_of(stride: int) -> LastLevelMaxPool:
    """The pyramid's last level, of half the resolution of the one of this stride."""
    top = LastLevelMaxPool()
    top.in_feature = f"p{stride.bit_length() - 1}"
    return top


def build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network of ``MODEL.BACKBONE.BOTTOM_UP``.

    Raises:
        ConfigError: there is none of this name.
    """
    name = cfg.MODEL.BACKBONE.BOTTOM_UP
    if name not in BACKBONE_REGISTRY or name in NECKS:
        known = sorted(other for other, _ in BACKBONE_REGISTRY if other not in NECKS)
        raise ConfigError(
            f"MODEL.BACKBONE.BOTTOM_UP {name!r} is no backbone to put under a neck; choose one of "
            f"{', '.join(known)}"
        )
    return BACKBONE_REGISTRY.get(name)(cfg, input_shape)
