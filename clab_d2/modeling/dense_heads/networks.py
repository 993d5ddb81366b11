"""From maps to dense predictions, by way of two towers whose features the aggregation takes, too.

Each network has a tower for classes and one for boxes, as RetinaNet has, and shows what they give
beside what is predicted from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn


class Towers(NamedTuple):
    """Features of N frames on one level.

    Attributes:
        cls: (N, D, h, w), what classes are predicted from.
        box: (N, D, h, w), what boxes are predicted from.
    """

    cls: Tensor
    box: Tensor


class ConvNetwork(RetinaNetHead):
    """Detectron2's RetinaNet head, whose towers are open to others."""

    def towers(self, maps: Sequence[Tensor]) -> list[Towers]:
        """
        Args:
            maps: (N, C, h, w) of each level.
        """
        return [Towers(self.cls_subnet(x), self.bbox_subnet(x)) for x in maps]

    def predict(self, towers: Sequence[Towers]) -> list[list[Tensor]]:
        """Class logits (N, A * K, h, w) of each level, then box deltas (N, A * 4, h, w)."""
        logits = [self.cls_score(level.cls) for level in towers]
        return [logits, [self.bbox_pred(level.box) for level in towers]]


class ConvNetworkWithCenterness(FCOSHead):
    """Detectron2's FCOS head, whose towers are open to others."""

    towers = ConvNetwork.towers

    def predict(self, towers: Sequence[Towers]) -> list[list[Tensor]]:
        """As :meth:`ConvNetwork.predict`, then logits of centerness (N, 1, h, w)."""
        predictions = ConvNetwork.predict(self, towers)  # type: ignore[arg-type]
        return [*predictions, [self.ctrness(level.box) for level in towers]]


class SeparableNetwork(nn.Module):
    """A light network: depthwise separable convs, and 1x1 convs to predict with.

    Each level has convs of its own, which costs nothing in time and lets its batch norms become
    part of them at test.
    """

    def __init__(
        self,
        input_shape: Sequence[ShapeSpec],
        *,
        num_classes: int,
        num_anchors: int,
        dim: int,
        num_convs: int,
        kernel_size: int = 5,
        centerness: bool = False,
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            input_shape: of each level's map.
            num_classes: number of classes K.
            num_anchors: anchors A at each position.
            dim: channels D of the towers.
            num_convs: separable convs of each tower.
            kernel_size: of the depthwise convs; odd.
            centerness: whether it is predicted, too, as FCOS wants.
            prior_prob: score of all predictions at the start.
        """
        super().__init__()
        channels = [shape.channels for shape in input_shape]
        self.stems = nn.ModuleList(_conv(c, dim, 1) for c in channels)

        def tower() -> nn.Sequential:
            return nn.Sequential(*(_separable(dim, kernel_size) for _ in range(num_convs)))

        self.cls_subnet = nn.ModuleList(tower() for _ in channels)
        self.bbox_subnet = nn.ModuleList(tower() for _ in channels)
        self.cls_score = self._predictors(len(channels), dim, num_anchors * num_classes)
        for conv in self.cls_score:
            nn.init.constant_(conv.bias, -math.log((1 - prior_prob) / prior_prob))
        self.bbox_pred = self._predictors(len(channels), dim, num_anchors * 4)
        self.ctrness = self._predictors(len(channels), dim, 1) if centerness else None

    @staticmethod
    def _predictors(num_levels: int, dim: int, out_channels: int) -> nn.ModuleList:
        convs = nn.ModuleList(nn.Conv2d(dim, out_channels, 1) for _ in range(num_levels))
        for conv in convs:
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        return convs

    def towers(self, maps: Sequence[Tensor]) -> list[Towers]:
        """See :meth:`ConvNetwork.towers`."""
        stems = [stem(x) for stem, x in zip(self.stems, maps, strict=True)]
        parts = zip(stems, self.cls_subnet, self.bbox_subnet, strict=True)
        return [Towers(cls(x), box(x)) for x, cls, box in parts]

    def predict(self, towers: Sequence[Towers]) -> list[list[Tensor]]:
        """See :meth:`ConvNetworkWithCenterness.predict`; the last is left out without it."""
        logits = [conv(level.cls) for conv, level in zip(self.cls_score, towers, strict=True)]
        deltas = [conv(level.box) for conv, level in zip(self.bbox_pred, towers, strict=True)]
        if self.ctrness is None:
            return [logits, deltas]
        centerness = [conv(level.box) for conv, level in zip(self.ctrness, towers, strict=True)]
        return [logits, deltas, centerness]


def _conv(in_channels: int, out_channels: int, kernel_size: int, groups: int = 1) -> Conv2d:
    return Conv2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False,
        norm=nn.BatchNorm2d(out_channels), activation=nn.ReLU(),
    )  # fmt: skip


def _separable(dim: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(_conv(dim, dim, kernel_size, groups=dim), _conv(dim, dim, 1))
