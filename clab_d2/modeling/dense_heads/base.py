"""What a one-stage head is, and what it gives for the frames of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.dense_heads.networks import (
    ConvNetwork,
    ConvNetworkWithCenterness,
    SeparableNetwork,
    Towers,
)
from clab_d2.registry import Registry

DENSE_HEAD_REGISTRY = Registry("DENSE_HEAD", "MODEL.DENSE.HEAD")
DENSE_HEAD_REGISTRY.__doc__ = """
One-stage heads; an entry is called as ``entry(cfg, shapes)`` with the shape of each level that it
takes, by name, and gives a :class:`DenseHead`.
"""

TOWERS = ("Conv", "Separable")


@dataclass
class DensePredictions:
    """What a head predicts for N frames of one size; lists have an entry for each level.

    Attributes:
        anchors: of R = h * w * A predictions.
        predictions: what the network predicts, (N, R, K), (N, R, 4), ...: class logits, box deltas
            and what else the head has.
        towers: features of both towers, (N, D, h, w).
    """

    anchors: list[Boxes]
    predictions: list[list[Tensor]]
    towers: list[Towers]


class GivenMaps(Backbone):
    """Stands where Detectron2's one-stage detectors have their backbone: maps are given to ours."""

    def __init__(self, shapes: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self._shapes = shapes

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return maps


class DenseHead(nn.Module, ABC):
    """A head that predicts classes and a box at every position, to be mixed into a Detectron2
    detector that has ``head``, ``anchor_generator`` and ``box2box_transform``.

    Attributes:
        head: the network (:mod:`clab_d2.modeling.dense_heads.networks`).
        num_classes: number of classes K.
    """

    head: nn.Module
    num_classes: int

    @property
    @abstractmethod
    def dims(self) -> tuple[int, ...]:
        """Numbers that each of the network's outputs has for an anchor: classes, 4, ..."""

    @abstractmethod
    def detection_losses(
        self, output: DensePredictions, targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Losses of N frames.

        Args:
            output: of these frames.
            targets: ground truth of each.
        """

    @abstractmethod
    def score_logits(self, predictions: Sequence[Tensor]) -> Tensor:
        """Logits of the scores that predictions are ranked by, (..., K), in single precision.

        Args:
            predictions: (..., K), (..., 4), ...: see :class:`DensePredictions`.
        """

    @abstractmethod
    def best_scores(self, predictions: Sequence[Tensor]) -> Tensor:
        """The best class's score of each prediction, (...); cheaper than by all scores."""

    def forward(self, maps: Sequence[Tensor]) -> DensePredictions:
        """
        Args:
            maps: (N, C, h, w) of each level.
        """
        towers = self.head.towers(maps)
        predictions = [
            [permute_to_N_HWA_K(x, dim) for x in levels]
            for levels, dim in zip(self.head.predict(towers), self.dims, strict=True)
        ]
        return DensePredictions(self.anchor_generator(list(maps)), predictions, towers)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (M, 4) from deltas (M, 4) and anchors (M, 4)."""
        return self.box2box_transform.apply_deltas(deltas.to(anchors.dtype), anchors)


def in_single_precision(tensor: Tensor) -> Tensor:
    """Scores of three digits would tie, and ties cost precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def build_network(
    cfg: CfgNode, shapes: Sequence[ShapeSpec], num_anchors: int, centerness: bool
) -> nn.Module:
    """The network that ``MODEL.DENSE.TOWERS`` names.

    Args:
        cfg: the config.
        shapes: of each level's map.
        num_anchors: at each position.
        centerness: whether the head wants it predicted.
    """
    dense, retina = cfg.MODEL.DENSE, cfg.MODEL.RETINANET
    common = {
        "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "prior_prob": retina.PRIOR_PROB,
    }
    if dense.TOWERS == "Separable":
        return SeparableNetwork(
            shapes, num_anchors=num_anchors, dim=dense.DIM, num_convs=retina.NUM_CONVS,
            kernel_size=dense.KERNEL_SIZE, centerness=centerness, **common,
        )  # fmt: skip
    if dense.TOWERS != "Conv":
        raise ConfigError(
            f"MODEL.DENSE.TOWERS is {dense.TOWERS!r}; choose one of {', '.join(map(repr, TOWERS))}"
        )
    channels = {shape.channels for shape in shapes}
    if len(channels) != 1:
        raise ConfigError(
            f"MODEL.RETINANET.IN_FEATURES {list(cfg.MODEL.RETINANET.IN_FEATURES)} differ in "
            'channels; choose levels of one pyramid, or MODEL.DENSE.TOWERS "Separable"'
        )
    common |= {
        "input_shape": list(shapes),
        "conv_dims": [dense.DIM] * retina.NUM_CONVS,
        "norm": retina.NORM,
    }
    if centerness:
        return ConvNetworkWithCenterness(**common)
    return ConvNetwork(num_anchors=num_anchors, **common)
