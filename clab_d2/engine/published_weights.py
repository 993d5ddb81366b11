"""Weights of classification networks, put into a detector's backbone under its names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from detectron2.modeling.backbone import ResNet
from torch import Tensor, nn

from clab_d2.checkpoint.torchvision import BACKBONE_PREFIX, convert_resnet
from clab_d2.modeling.backbones.base import BottomUp, bottom_up_of

logger = logging.getLogger(__name__)


def place_published(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name weights of the classification network that a detector's backbone is made of.

    Args:
        model: the detector; its ``backbone`` is looked at.
        weights: of a file. What is a detector's already stays as it is.

    Returns:
        The weights by the detector's names; the classifier's and others without a place are gone.

    Raises:
        DataError: they are of another architecture than the backbone.
    """
    own = set(model.state_dict())
    backbone = getattr(model, "backbone", None)
    if backbone is None or not own.isdisjoint(weights):
        return dict(weights)
    network = bottom_up_of(backbone)
    prefix = next(f"{name}." for name, module in model.named_modules() if module is network)
    placed = {prefix + name: value for name, value in _named(network, weights).items()}
    return placed if not own.isdisjoint(placed) else dict(weights)


def _named(network: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """By the names that the network below the neck has for them."""
    if _is_of_detectron2(weights):
        return weights
    if isinstance(network, BottomUp):
        return network.from_published(weights)
    if isinstance(network, ResNet) and "layer1.0.conv1.weight" in weights:
        placed, _, _ = convert_resnet(weights)
        return {name.removeprefix(BACKBONE_PREFIX): value for name, value in placed.items()}
    return weights


def _is_of_detectron2(names: Collection[str]) -> bool:
    return any(name.startswith(("backbone.", "proposal_generator.")) for name in names)
