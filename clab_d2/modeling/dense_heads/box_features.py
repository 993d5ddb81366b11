"""What lies in the boxes of selected predictions, beside the towers' features at one position."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.layers.roi_pooling import FastROIPooler


class BoxFeatures(nn.Module):
    """RoIAlign of the maps at the predicted boxes, then a linear map and a ReLU.

    A position of a map says little of where in the object its parts are; a box's bins do, as a
    second stage's have it. A few boxes a frame cost little.
    """

    def __init__(
        self, channels: int, strides: Sequence[int], dim: int, resolution: int = 5
    ) -> None:
        """
        Args:
            channels: of each map.
            strides: of each map.
            dim: channels D of the result.
            resolution: bins S along each side of a box.
        """
        super().__init__()
        self.pooler = FastROIPooler(resolution, [1 / s for s in strides], 1, "ROIAlignV2")
        self.project = nn.Linear(channels * resolution**2, dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: Sequence[ShapeSpec]) -> BoxFeatures | None:
        """What ``MODEL.DENSE.POOLER_RESOLUTION`` asks for; None for 0."""
        resolution = cfg.MODEL.DENSE.POOLER_RESOLUTION
        if not resolution:
            return None
        channels = {shape.channels for shape in shapes}
        if len(channels) != 1:
            raise ConfigError(
                f"MODEL.DENSE.POOLER_RESOLUTION {resolution} pools from maps of one number of "
                f"channels, and MODEL.RETINANET.IN_FEATURES {cfg.MODEL.RETINANET.IN_FEATURES} "
                "differ; choose levels of one pyramid, or set it 0"
            )
        strides = [shape.stride for shape in shapes]
        return cls(channels.pop(), strides, cfg.MODEL.DENSE.DIM, resolution)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Boxes]) -> Sequence[Tensor]:
        """
        Args:
            maps: (N, C, h, w) of each level.
            boxes: of each of the N frames, in pixels of the image.

        Returns:
            (R, D) for the R boxes of each frame.
        """
        pooled = self.pooler(list(maps), list(boxes)).flatten(1)
        return F.relu(self.project(pooled)).split([len(each) for each in boxes])
