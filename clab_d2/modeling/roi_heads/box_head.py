"""The box head: Detectron2's, with an aggregation over frames after each FC layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.base import BoxAggregation, build_box_aggregation
from clab_d2.modeling.part_results import check_sequence, check_tensor


@ROI_BOX_HEAD_REGISTRY.register()
class TemporalBoxHead(FastRCNNConvFCHead):
    """Detectron2's convs and FC layers, each FC followed by an aggregation (none: its plain head).

    ``x' = relu(aggregate(fc(x), ref))`` with ``ref`` made of ``fc`` of the reference RoIs, whose
    own path is ``relu(fc(ref))``: it never sees the key frame.

    The weights have the names of Detectron2's head, so that its files load.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: Sequence[int] = (),
        fc_dims: Sequence[int],
        norm: str = "",
        aggregations: Sequence[BoxAggregation] = (),
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of the RoI features.
            conv_dims: output channels of each 3x3 conv before the FC layers.
            fc_dims: output channels of each FC layer.
            norm: of the convs, any of Detectron2's. "LN" also makes each FC a linear map and a
                layer norm, which training from scratch wants.
            aggregations: one for each FC layer, or none at all.
        """
        if not fc_dims:
            raise ConfigError("MODEL.ROI_BOX_HEAD.NUM_FC is 0; the box head needs at least one")
        if len(aggregations) not in (0, len(fc_dims)):
            raise ValueError(f"{len(aggregations)} aggregations for {len(fc_dims)} FC layers")
        super().__init__(
            input_shape, conv_dims=list(conv_dims), fc_dims=list(fc_dims), conv_norm=norm
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if norm == "LN" else nn.Identity() for dim in fc_dims
        )
        self.aggregations = nn.ModuleList(aggregations)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        aggregations = [build_box_aggregation(cfg, head.FC_DIM) for _ in range(head.NUM_FC)]
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "norm": head.NORM,
            "aggregations": [part for part in aggregations if part is not None],
        }

    @property
    def needs_references(self) -> bool:
        """Whether the head uses reference RoIs at all."""
        return any(part.needs_references for part in self.aggregations)

    def _flat(self, box_features: Tensor) -> Tensor:
        """Convs: (R, C, H, W) -> (R, D)."""
        for conv in self.conv_norm_relus:
            box_features = conv(box_features)
        return torch.flatten(box_features, start_dim=1)

    def encode_references(self, box_features: Tensor) -> list[Sequence[Tensor]]:
        """
        Args:
            box_features: (M, C, H, W) RoI features of reference frames.

        Returns:
            For each FC layer what :meth:`BoxAggregation.encode_references` gives.
        """
        x = self._flat(box_features)
        encoded = []
        for index, (fc, part) in enumerate(zip(self.fcs, self.aggregations, strict=True)):
            if index:
                x = F.relu(x)
            x = self.norms[index](fc(x))
            encoded.append(part.encode_references(x))
            _check_encoded(part, encoded[-1], len(x))
        return encoded

    def forward(
        self,
        x: Tensor,
        references: Sequence[Sequence[Tensor]] | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            x: (R, C, H, W) RoI features of one key frame.
            references: what :meth:`encode_references` gave for the key frame's M reference RoIs;
                None if no aggregation of the head needs them.
            counts: (M,), see :meth:`BoxAggregation.forward`.

        Returns:
            (R, fc_dims[-1]).
        """
        x = self._flat(x)
        for index, fc in enumerate(self.fcs):
            x = self.norms[index](fc(x))
            if len(self.aggregations):
                part = self.aggregations[index]
                if references is None and part.needs_references:
                    raise ValueError("a box head that aggregates needs reference RoIs")
                aggregated = part(x, () if references is None else references[index], counts)
                check_tensor(part, "forward", aggregated, x.shape, "(R, C), as its features")
                x = aggregated
            x = F.relu(x)
        return x


def _check_encoded(part: BoxAggregation, encoded: object, num_rois: int) -> None:
    """Check what :meth:`BoxAggregation.encode_references` gave for so many RoIs."""
    what = "one or more (..., M, D), M the reference RoIs"
    check_sequence(part, "encode_references", encoded, what)
    for tensor in encoded:  # type: ignore[attr-defined]
        dimensions = max(tensor.dim() if isinstance(tensor, Tensor) else 0, 2)
        shape = (*(None,) * (dimensions - 2), num_rois, None)
        check_tensor(part, "encode_references", tensor, shape, what)
