"""From a network's maps to those that detection takes: one scale, or a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from clab_d2.modeling.backbones.base import feature_keys


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


class LightFeaturePyramid(Backbone):
    """A pyramid for small networks: what is deep is added to what is fine, as in FPN, by 1x1 convs,
    and each level that is asked for is smoothed by a depthwise conv and a ReLU.

    Detectron2's has a full 3x3 conv for each level, which at stride 8 costs as much as all of a
    small network.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        out_features: Sequence[str] = (),
        kernel_size: int = 5,
    ) -> None:
        """
        Args:
            bottom_up: network that returns a dict of feature maps.
            in_features: which of them the pyramid takes, each twice the stride of the one before.
            out_channels: channels of its levels.
            out_features: levels to give, such as "p3" for stride 8; all by default.
            kernel_size: of the depthwise convs; odd.
        """
        super().__init__()
        shapes = bottom_up.output_shape()
        names = {name: _level_of(shapes[name].stride) for name in in_features}
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.out_features = list(out_features) or list(names.values())
        missing = [name for name in self.out_features if name not in names.values()]
        if missing:
            raise ConfigError(
                f"{missing[0]!r} is no level of the pyramid; choose among "
                f"{', '.join(names.values())}, or change MODEL.FPN.IN_FEATURES"
            )
        self.level_of = names
        self.lateral = nn.ModuleDict(
            {name: nn.Conv2d(shapes[name].channels, out_channels, 1) for name in in_features}
        )
        self.smooth = nn.ModuleDict(
            {
                name: nn.Conv2d(
                    out_channels, out_channels, kernel_size,
                    padding=kernel_size // 2, groups=out_channels,
                )
                for name in self.out_features
            }
        )  # fmt: skip
        for conv in self.lateral.values():
            weight_init.c2_xavier_fill(conv)
        stride_of = {level: shapes[name].stride for name, level in names.items()}
        self._shapes = {
            level: ShapeSpec(channels=out_channels, stride=stride_of[level])
            for level in self.out_features
        }
        self._divisibility = math.lcm(*stride_of.values(), max(bottom_up.size_divisibility, 1))

    @property
    def size_divisibility(self) -> int:
        """Images are zero-padded to a multiple of the deepest map's stride."""
        return self._divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W).

        Returns:
            The pyramid's levels by name, the finest first.
        """
        features = self.bottom_up(x)
        levels: dict[str, Tensor] = {}
        deeper: Tensor | None = None
        for name in reversed(self.in_features):
            own = self.lateral[name](features[name])
            if deeper is not None:
                own = own + F.interpolate(deeper, own.shape[-2:])
            deeper, level = own, self.level_of[name]
            if level in self.smooth:
                levels[level] = F.relu(self.smooth[level](own))
        return {name: levels[name] for name in self.out_features}


# Detectron2's pyramid from one map can multiply its resolution by these.
_SCALES = (4.0, 2.0, 1.0, 0.5)


#: Backbones that put a neck on the network of ``MODEL.BACKBONE.BOTTOM_UP``.
NECKS = ("build_single_scale_backbone", "build_fpn_backbone", "build_light_fpn_backbone")


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
    fpn = cfg.MODEL.FPN
    strides = _strides(cfg, bottom_up.output_shape())
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


@BACKBONE_REGISTRY.register()
def build_light_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LightFeaturePyramid:
    """The network of ``MODEL.BACKBONE.BOTTOM_UP`` under a :class:`LightFeaturePyramid`, which gives
    the levels that heads and contrastive branch ask for."""
    bottom_up = build_bottom_up(cfg, input_shape)
    levels = [_level_of(stride) for stride in _strides(cfg, bottom_up.output_shape())]
    asked = {name for key in feature_keys(cfg) for name in cfg.MODEL[key].IN_FEATURES}
    if cfg.MODEL.CONTRASTIVE.ENABLED:
        asked.add(cfg.MODEL.CONTRASTIVE.IN_FEATURE)
    return LightFeaturePyramid(
        bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        out_features=[level for level in levels if level in asked],
    )


def _strides(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> list[int]:
    """Strides of ``MODEL.FPN.IN_FEATURES``, checked."""
    names = list(cfg.MODEL.FPN.IN_FEATURES)
    strides = [shapes[name].stride for name in names]
    contiguous = all(b == 2 * a for a, b in pairwise(strides))
    if not strides or not contiguous or not math.log2(strides[0]).is_integer():
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {names} have strides {strides}; a pyramid "
            "takes maps of 2**n, each twice the stride of the one before, or one map alone"
        )
    return strides


def _level_of(stride: int) -> str:
    """A pyramid's name for the level of a stride: "p3" for 8."""
    return f"p{stride.bit_length() - 1}"


def _half_of(stride: int) -> LastLevelMaxPool:
    """The pyramid's last level, of half the resolution of the one of this stride."""
    top = LastLevelMaxPool()
    top.in_feature = _level_of(stride)
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
