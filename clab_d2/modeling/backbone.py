"""ResNet with a single-scale neck (C4 or dilated C5), and batch norm with fixed statistics."""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
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
        """Images are zero-padded to a multiple of the neck's stride, as the release pads them."""
        return self._shapes[self.out_feature].stride

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


@BACKBONE_REGISTRY.register()
def build_resnet_dc5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SingleScaleBackbone:
    """Detectron2's ResNet and the neck of ``MODEL.NECK``; see :class:`SingleScaleBackbone`."""
    stages = set(cfg.MODEL.RESNETS.OUT_FEATURES) | {cfg.MODEL.NECK.IN_FEATURE}
    if cfg.MODEL.CONTRASTIVE.ENABLED and cfg.MODEL.CONTRASTIVE.IN_FEATURE.startswith("res"):
        stages.add(cfg.MODEL.CONTRASTIVE.IN_FEATURE)
    # A stage deeper than the neck's would be computed at inference for nothing.
    deepest = cfg.MODEL.NECK.IN_FEATURE
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.OUT_FEATURES = sorted(
        stage for stage in stages if stage == "stem" or stage <= deepest
    )
    return SingleScaleBackbone(
        build_resnet_backbone(cfg, input_shape),
        in_feature=cfg.MODEL.NECK.IN_FEATURE,
        out_channels=cfg.MODEL.NECK.OUT_CHANNELS,
    )


class FixedStatisticsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises with its running statistics in training too.

    Weight and bias are trained; mean and variance are what was loaded (METHOD: "running statistics
    frozen everywhere, while weight and bias train").
    """

    def train(self, mode: bool = True) -> FixedStatisticsBatchNorm2d:
        # In evaluation mode batch norm neither uses nor updates batch statistics.
        return super().train(False)


def fix_batch_norm_statistics(module: nn.Module) -> nn.Module:
    """Make every ``BatchNorm2d`` below ``module`` keep its running statistics, in place.

    Parameter names stay the same. Detectron2's ``FrozenBatchNorm2d`` (the frozen stages) is left.

    Returns:
        ``module``.
    """
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            # Same layout, one method replaced: no copy of parameters, hooks or device needed.
            child.__class__ = FixedStatisticsBatchNorm2d
            child.train(False)
    return module
