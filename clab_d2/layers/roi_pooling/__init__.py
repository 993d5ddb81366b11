"""RoIAlign over one or several feature levels: Detectron2's ROIPooler, faster on a CPU."""

from __future__ import annotations

from typing import Literal

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor

from clab_d2.layers.roi_pooling import pytorch
from clab_d2.layers.roi_pooling.pytorch import BinInterpolation, bin_interpolation

__all__ = ["Backend", "BinInterpolation", "FastROIPooler", "bin_interpolation"]

# Weighted sums of rows (see pytorch.py), or torchvision's kernels, by way of Detectron2's ROIPooler
Backend = Literal["pytorch", "torchvision"]


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
        *,
        backend: Backend | None = None,
        **kwargs: int,
    ) -> None:
        """
        Args:
            output_size: bins along each side of a RoI.
            scales: feature pixels per image pixel, for each level.
            sampling_ratio: samples along each side of a bin.
            pooler_type: Detectron2's name, such as "ROIAlignV2".
            backend: default by device and pooler, see above.
            kwargs: see :class:`ROIPooler`.

        Raises:
            ValueError: the backend "pytorch" for a pooler that is not linear.
        """
        super().__init__(output_size, scales, sampling_ratio, pooler_type, **kwargs)
        self.scales = list(scales)
        self.sampling_ratio = sampling_ratio
        self._is_linear = pooler_type == "ROIAlignV2" and sampling_ratio > 0
        if backend == "pytorch" and not self._is_linear:
            raise ValueError(
                "the backend 'pytorch' needs ROIAlignV2 with a positive sampling ratio, not "
                f"{pooler_type} with {sampling_ratio}"
            )
        self.backend = backend

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
            (R, C, output_size, output_size), in the maps' type; boxes stay in single precision at
            least.
        """
        if self._backend_for(x[0].device) == "torchvision":
            # Detectron2 casts boxes to the maps' type, and half precision cannot tell a pixel from
            # the next at coordinates of hundreds.
            precise = [level.to(torch.promote_types(level.dtype, torch.float32)) for level in x]
            return super().forward(precise, box_lists).to(x[0].dtype)
        return torch.cat(
            [
                self._pool_image([level[index] for level in x], boxes)
                for index, boxes in enumerate(box_lists)
            ]
        )

    def _backend_for(self, device: torch.device) -> Backend:
        if self.backend is not None:
            return self.backend
        return "pytorch" if device.type == "cpu" and self._is_linear else "torchvision"

    def _pool_image(self, levels: list[Tensor], boxes: Boxes) -> Tensor:
        """RoIs of one image from its maps (C, h, w)."""
        size = self.output_size[0]
        if len(levels) == 1:
            return self._pool_level(levels[0], boxes.tensor, 0).permute(0, 3, 1, 2)
        level_of = self.levels_of(boxes)
        pooled = levels[0].new_zeros(len(boxes), size, size, levels[0].shape[0])
        for index, feature in enumerate(levels):
            chosen = (level_of == index).nonzero().flatten()
            bins = self._pool_level(feature, boxes.tensor[chosen], index)
            pooled = pooled.index_copy(0, chosen, bins)
        return pooled.permute(0, 3, 1, 2)

    def _pool_level(self, feature: Tensor, boxes: Tensor, level: int) -> Tensor:
        """(R, output_size, output_size, C) from one level's map (C, h, w)."""
        return pytorch.roi_align(
            feature, boxes, self.output_size[0], self.scales[level], self.sampling_ratio
        )
