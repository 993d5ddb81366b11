"""The box head of Detectron2's "C4" detectors: the last stage of the ResNet, on each RoI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.backbone import BottleneckBlock, ResNet
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.base import BoxAggregation, build_box_aggregation
from clab_d2.modeling.backbones.batch_norm import fix_batch_norm_statistics


@ROI_BOX_HEAD_REGISTRY.register()
class Res5BoxHead(nn.Module):
    """``res5`` on RoI features of ``res4``, averaged over the bins, then an aggregation.

    What :class:`~clab_d2.modeling.roi_heads.box_head.TemporalBoxHead` is for FC layers this is for
    the stage: ``x' = relu(aggregate(mean(res5(x)), ref))``. Without an aggregation it is what
    Detectron2's ``Res5ROIHeads`` do, whose weights (``roi_heads.res5``) load.
    """

    @configurable
    def __init__(self, *, res5: nn.Module, dim: int, aggregation: BoxAggregation | None) -> None:
        """
        Args:
            res5: the stage, (R, C, S, S) -> (R, dim, S', S').
            dim: its output channels.
            aggregation: on the averaged features; None for none.
        """
        super().__init__()
        self.res5 = res5
        self.dim = dim
        self.aggregation = aggregation

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        resnets = cfg.MODEL.RESNETS
        dim = 8 * resnets.RES2_OUT_CHANNELS
        if resnets.DEPTH < 50 or input_shape.channels != dim // 2:
            raise ConfigError(
                "MODEL.ROI_BOX_HEAD.NAME Res5BoxHead goes on where a ResNet of depth 50 or more "
                f"ends with res4 of {dim // 2} channels; here are {input_shape.channels} channels "
                f"and depth {resnets.DEPTH}: set MODEL.ROI_HEADS.IN_FEATURES ['res4'], or take "
                "TemporalBoxHead"
            )
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=dim // 2,
            bottleneck_channels=8 * resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP,
            out_channels=dim,
            num_groups=resnets.NUM_GROUPS,
            norm=resnets.NORM,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
        )
        res5 = nn.Sequential(*blocks)
        if cfg.MODEL.BACKBONE.FIX_BN_STATISTICS:
            fix_batch_norm_statistics(res5)
        return {"res5": res5, "dim": dim, "aggregation": build_box_aggregation(cfg, dim)}

    @property
    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=self.dim)

    @property
    def needs_references(self) -> bool:
        """Whether the head uses reference RoIs."""
        return self.aggregation is not None and self.aggregation.needs_references

    def encode_references(self, box_features: Tensor) -> list[Sequence[Tensor]]:
        """
        Args:
            box_features: (M, C, S, S) RoI features of reference frames.

        Returns:
            What :meth:`BoxAggregation.encode_references` gives, as the only layer's.
        """
        if self.aggregation is None:
            return []
        return [self.aggregation.encode_references(self._averaged(box_features))]

    def forward(
        self,
        x: Tensor,
        references: Sequence[Sequence[Tensor]] | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`TemporalBoxHead.forward`; (R, C, S, S) -> (R, dim)."""
        x = self._averaged(x)
        if self.aggregation is None:
            return x
        if references is None:
            raise ValueError("a box head that aggregates needs reference RoIs")
        return F.relu(self.aggregation(x, references[0], counts))

    def _averaged(self, box_features: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, dim)."""
        return self.res5(box_features).mean(dim=[2, 3])
