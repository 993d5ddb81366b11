"""ResNet with a single-scale neck (C4 or dilated C5), batch norm with fixed statistics, and
activations computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import ResNet, build_resnet_backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clab_d2.errors import ConfigError

# Blocks between two activations that are kept. All stages of a ResNet-50 have at most so many; of
# the 23 blocks of ResNet-101's res4, all at once would need too much when they are computed again.
_BLOCKS_AT_A_TIME = 6


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

    Weight and bias are trained; mean and variance are what was loaded, as in the release
    (docs/method.md, 'The detector').
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


class CheckpointedStage(nn.Sequential):
    """Blocks whose activations are computed again in the backward pass instead of being kept."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h', w')"""
        if not torch.is_grad_enabled():
            return super().forward(x)
        blocks = list(self)
        for start in range(0, len(blocks), _BLOCKS_AT_A_TIME):
            part = blocks[start : start + _BLOCKS_AT_A_TIME]
            x = checkpoint(
                _run, part, x, use_reentrant=False, context_fn=lambda part=part: _contexts(part)
            )
        return x


def checkpoint_activations(backbone: nn.Module) -> nn.Module:
    """Keep no activations within the trained stages of the ResNets in ``backbone``, in place.

    The backward pass then costs another forward pass of these stages. Losses, gradients and running
    statistics stay the same, as do parameter names. Stages that are frozen keep nothing anyway.

    Returns:
        ``backbone``.

    Raises:
        ConfigError: there is no ResNet in it.
    """
    resnets = [module for module in backbone.modules() if isinstance(module, ResNet)]
    if not resnets:
        raise ConfigError(
            "MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS is for ResNets, and "
            f"{type(backbone).__name__} has none; set it False"
        )
    for resnet in resnets:
        for stage in resnet.stages:
            if any(parameter.requires_grad for parameter in stage.parameters()):
                # Same layout, one method replaced, as for batch norm above.
                stage.__class__ = CheckpointedStage
    return backbone


def _run(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _contexts(blocks: Sequence[nn.Module]) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What the first pass and the one in the backward pass run in."""
    return nullcontext(), _statistics_left_alone(blocks)


@contextmanager
def _statistics_left_alone(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let batch norm count the batch in copies of its statistics, which are then thrown away.

    The original tensors may not be written to and set back: autograd has noted their version.
    """
    norms = [
        module
        for block in blocks
        for module in block.modules()
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and module.training
    ]
    originals = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, originals, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
