"""Detectron2's ROIPooler with a faster RoIAlign on the CPU."""

from __future__ import annotations

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor

from clab_d2.modeling.most_similar import bin_interpolation, map_rows


class FastROIPooler(ROIPooler):
    """RoIAlign over one or several feature levels.

    On the CPU each bin is a weighted sum of rows of the feature map, which PyTorch's
    ``embedding_bag`` does several times faster than torchvision's RoIAlign, forward and backward;
    elsewhere, and for other poolers than ROIAlignV2 with a fixed sampling ratio, it is
    Detectron2's own.
    """

    def __init__(
        self,
        output_size: int,
        scales: list[float],
        sampling_ratio: int,
        pooler_type: str,
        **kwargs: int,
    ) -> None:
        """
        Args:
            output_size: bins along each side of a RoI.
            scales: feature pixels per image pixel, for each level.
            sampling_ratio: samples along each side of a bin.
            pooler_type: Detectron2's name, such as "ROIAlignV2".
            kwargs: see :class:`ROIPooler`.
        """
        super().__init__(output_size, scales, sampling_ratio, pooler_type, **kwargs)
        self.scales = list(scales)
        self.sampling_ratio = sampling_ratio
        self._is_linear = pooler_type == "ROIAlignV2" and sampling_ratio > 0

    def levels_of(self, boxes: Boxes) -> Tensor:
        """(R,) index of the feature level that each box is pooled from."""
        if len(self.scales) == 1:
            return torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        return assign_boxes_to_levels(
            [boxes],
            self.min_level,
            self.max_level,
            self.canonical_box_size,
            self.canonical_level,
        )

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            x: a feature map (N, C, h, w) for each level.
            box_lists: boxes of each of the N images, R in all.

        Returns:
            (R, C, output_size, output_size).
        """
        if x[0].device.type != "cpu" or not self._is_linear:
            return super().forward(x, box_lists)
        return torch.cat(
            [
                self._pool_image([level[index] for level in x], boxes)
                for index, boxes in enumerate(box_lists)
            ]
        )

    def _pool_image(self, levels: list[Tensor], boxes: Boxes) -> Tensor:
        """RoIs of one image from its maps (C, h, w)."""
        size, channels = self.output_size[0], levels[0].shape[0]
        level_of = self.levels_of(boxes)
        pooled = levels[0].new_zeros(len(boxes), size, size, channels)
        for index, (feature, scale) in enumerate(zip(levels, self.scales, strict=True)):
            chosen = (level_of == index).nonzero().flatten()
            interpolation = bin_interpolation(
                boxes.tensor[chosen].to(torch.promote_types(boxes.tensor.dtype, feature.dtype)),
                size,
                scale,
                self.sampling_ratio,
                *feature.shape[-2:],
            )
            bins = interpolation.of(map_rows(feature)).view(-1, size, size, channels)
            if len(levels) == 1:
                return bins.permute(0, 3, 1, 2)
            pooled = pooled.index_copy(0, chosen, bins)
        return pooled.permute(0, 3, 1, 2)
