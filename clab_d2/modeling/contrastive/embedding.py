"""From feature maps to the embeddings that are contrasted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.layers.roi_pooling import FastROIPooler


class Embedding(nn.Module):
    """3x3 conv, ReLU, a pooling of the loss's choice, and a two-layer projection (CLAB, Fig. 2).

    Attributes:
        embed_dim: numbers in an embedding.
    """

    @configurable
    def __init__(self, channels: int, conv_dim: int, hidden_dim: int, embed_dim: int) -> None:
        """
        Args:
            channels: of the tapped map.
            conv_dim, hidden_dim, embed_dim: channels after the conv, within and after the
                projection.
        """
        super().__init__()
        self.embed_dim = embed_dim
        self.conv = nn.Conv2d(channels, conv_dim, 3, padding=1)
        self.projection = nn.Sequential(
            nn.Linear(conv_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, embed_dim),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        branch = cfg.MODEL.CONTRASTIVE
        return {
            "channels": input_shape.channels,
            "conv_dim": branch.CONV_DIM,
            "hidden_dim": branch.HIDDEN_DIM,
            "embed_dim": branch.EMBED_DIM,
        }

    def maps(self, features: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, conv_dim, h, w), to be pooled."""
        return F.relu(self.conv(features))

    def project(self, pooled: Tensor) -> Tensor:
        """(N, conv_dim) -> (N, embed_dim)."""
        return self.projection(pooled)


class RoIEmbedding(Embedding):
    """The embedding of boxes: after the conv RoIAlign, its mean, and the projection."""

    @configurable
    def __init__(
        self,
        channels: int,
        conv_dim: int,
        hidden_dim: int,
        embed_dim: int,
        stride: int,
        resolution: int = 7,
        sampling_ratio: int = 2,
    ) -> None:
        """
        Args:
            channels, conv_dim, hidden_dim, embed_dim: see :class:`Embedding`.
            stride: pixels of the image for each position of the tapped map, along each axis.
            resolution: bins along each side of a box.
            sampling_ratio: samples along each side of a bin.
        """
        super().__init__(channels, conv_dim, hidden_dim, embed_dim)
        self.pooler = FastROIPooler(resolution, [1.0 / stride], sampling_ratio, "ROIAlignV2")

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "stride": stride_of(input_shape),
            "resolution": cfg.MODEL.CONTRASTIVE.POOLER_RESOLUTION,
        }

    def of_boxes(self, features: Tensor, boxes: Sequence[Boxes]) -> Sequence[Tensor]:
        """Embeddings of boxes in N frames.

        Args:
            features: (N, C, h, w) tapped maps.
            boxes: of each frame, in pixels of the image.

        Returns:
            (R, embed_dim) for the R boxes of each frame.
        """
        return self.embed(self.maps(features), boxes)

    def embed(self, maps: Tensor, boxes: Sequence[Boxes]) -> Sequence[Tensor]:
        """As :meth:`of_boxes`, from what :meth:`maps` gave."""
        pooled = self.pooler([maps], list(boxes)).mean(dim=(2, 3))
        return self.project(pooled).split([len(each) for each in boxes])


def stride_of(input_shape: ShapeSpec) -> int:
    """The tapped map's stride.

    Raises:
        ConfigError: the backbone does not tell it.
    """
    if input_shape.stride is None:
        raise ConfigError(
            "MODEL.CONTRASTIVE.LOSS pools the objects' boxes, but the backbone does not tell the "
            "stride of MODEL.CONTRASTIVE.IN_FEATURE; state it in its output_shape(), or choose "
            "ClipContrast"
        )
    return input_shape.stride
