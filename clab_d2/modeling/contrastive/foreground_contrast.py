"""CLAB's loss on what the objects' boxes hold, so that background does not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from clab_d2.modeling.contrastive.base import CONTRASTIVE_LOSS_REGISTRY, ContrastiveFrame
from clab_d2.modeling.contrastive.clip_contrast import ClipContrast
from clab_d2.modeling.contrastive.embedding import Embedding, stride_of


@CONTRASTIVE_LOSS_REGISTRY.register()
class ForegroundContrast(ClipContrast):
    """As :class:`ClipContrast`, but a frame's embedding is that of its objects' boxes.

    The mean is over the union of the boxes; a position that they cover in part counts in part. A
    frame without objects, or whose truth is not known, has no foreground and is left out.
    """

    needs_reference_truth = True

    @configurable
    def __init__(
        self,
        embedding: Embedding,
        stride: int,
        temperature: float = 0.1,
        memory_size: int = 0,
    ) -> None:
        """
        Args:
            embedding: conv and projection.
            stride: pixels of the image for each position of the tapped map, along each axis.
            temperature: NT-Xent's.
            memory_size: see :class:`~clab_d2.modeling.contrastive.pair_contrast.PairContrast`.
        """
        super().__init__(embedding, temperature=temperature, memory_size=memory_size)
        self.stride = stride

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "stride": stride_of(input_shape)}

    def pool(self, maps: Tensor, frames: Sequence[ContrastiveFrame]) -> Sequence[Tensor]:
        """Maps of N frames (N, C, h, w) -> (1, C) for each, the mean over its objects; (0, C) for a
        frame that has none."""
        shares = torch.stack([self._coverage(frame, maps) for frame in frames])
        totals = shares.sum(dim=(1, 2))
        # Means before sums: half precision ends at 65504.
        shares = shares / totals.clamp(min=torch.finfo(shares.dtype).tiny)[:, None, None]
        means = (maps * shares[:, None]).sum(dim=(2, 3)).to(maps.dtype)
        return means[totals > 0].split((totals > 0).int().tolist())

    def _coverage(self, frame: ContrastiveFrame, maps: Tensor) -> Tensor:
        size = (maps.shape[-2], maps.shape[-1])
        dtype = torch.promote_types(maps.dtype, torch.float32)
        if frame.instances is None:
            return maps.new_zeros(size, dtype=dtype)
        return union_coverage(frame.instances.gt_boxes.tensor.to(dtype) / self.stride, size)


def union_coverage(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of each cell of a grid that boxes cover together, exactly.

    The boxes' edges and the grid's lines cut the plane into rectangles, each of which lies within
    one cell, and within a box or outside it as a whole.

    Args:
        boxes: (N, 4) xyxy in cells: cell (row i, column j) is [j, j + 1) x [i, i + 1).
        size: (h, w).

    Returns:
        (h, w), from 0 to 1.
    """
    inside_x, in_column = _cut(boxes[:, 0], boxes[:, 2], size[1])
    inside_y, in_row = _cut(boxes[:, 1], boxes[:, 3], size[0])
    with torch.autocast(boxes.device.type, enabled=False):  # lengths want their precision
        covered = (inside_y.T @ inside_x > 0).to(boxes.dtype)
        return in_row.T @ covered @ in_column


def _cut(starts: Tensor, ends: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cut [0, length] at whole numbers and at the boxes' edges.

    Args:
        starts, ends: (N,) of the boxes along this axis.
        length: number of cells.

    Returns:
        (N, S), 1 where the box holds the segment, and (S, length), the length of the segment in the
        column of the cell that it lies in.
    """
    lines = torch.arange(length + 1, dtype=starts.dtype, device=starts.device)
    cuts = torch.cat([lines, starts, ends]).clamp(0, length).sort().values
    middles = (cuts[1:] + cuts[:-1]) / 2
    inside = (starts[:, None] <= middles) & (middles <= ends[:, None])
    cells = middles[:, None].floor() == lines[:-1]
    return inside.to(starts.dtype), cells * (cuts[1:] - cuts[:-1])[:, None]
