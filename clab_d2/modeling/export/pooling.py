"""RoIAlign in operators that graphs have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import roi_align

from clab_d2.errors import ConfigError
from clab_d2.layers.roi_pooling import FastROIPooler


class ExportedPooler(nn.Module):
    """RoIAlign of one image over one or several levels; every level for every RoI."""

    def __init__(self, pooler: FastROIPooler) -> None:
        super().__init__()
        if not all(isinstance(level, ROIAlign) for level in pooler.level_poolers):
            raise ConfigError(
                "MODEL.ROI_BOX_HEAD.POOLER_TYPE can't be exported; ROIAlign and ROIAlignV2 can"
            )
        self.pooler = pooler
        self.aligned = bool(pooler.level_poolers[0].aligned)

    def levels(self, boxes: Tensor) -> Tensor | None:
        """(R,) the level of each box; None where there is one level."""
        pooler = self.pooler
        if len(pooler.scales) == 1:
            return None
        return assign_boxes_to_levels(
            [Boxes(boxes)],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(1, C, h, w) for each level, (R, 4) -> (R, C, S, S)."""
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
        pooler = self.pooler
        pooled = [
            roi_align(feature, rois, pooler.output_size, scale, pooler.sampling_ratio, self.aligned)
            for feature, scale in zip(maps, pooler.scales, strict=True)
        ]
        return by_level(pooled, self.levels(boxes))


def by_level(results: Sequence[Tensor], levels: Tensor | None) -> Tensor:
    """Of results (R, ...) computed for each level, each RoI's own."""
    chosen = results[0]
    for level, result in enumerate(results[1:], start=1):
        assert levels is not None
        is_here = (levels == level).view(-1, *(1,) * (result.dim() - 1))
        chosen = torch.where(is_here, result, chosen)
    return chosen
