"""Detectron2's anchors in operators that graphs have."""

from __future__ import annotations

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn

from clab_d2.errors import ConfigError


class ExportedAnchors(nn.Module):
    """What :class:`DefaultAnchorGenerator` gives for one level, in the same order.

    Attributes:
        num_anchors: at each position, by level.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        if not isinstance(generator, DefaultAnchorGenerator):
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR.NAME {type(generator).__name__} can't be exported; "
                "DefaultAnchorGenerator can"
            )
        for level, anchors in enumerate(generator.cell_anchors):
            self.register_buffer(f"cell_anchors_{level}", anchors.detach().clone())
        self.num_anchors = list(generator.num_anchors)
        self.strides = list(generator.strides)
        self.offset = generator.offset

    def forward(self, level: int, height: int, width: int) -> Tensor:
        """(h * w * A, 4) of level number ``level``, whose map is h x w."""
        cell = getattr(self, f"cell_anchors_{level}")
        stride = self.strides[level]
        rows = (torch.arange(height, device=cell.device) + self.offset) * stride
        columns = (torch.arange(width, device=cell.device) + self.offset) * stride
        x = columns[None, :].expand(height, width)
        y = rows[:, None].expand(height, width)
        shifts = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4).to(cell.dtype)
        return (shifts + cell).reshape(-1, 4)
