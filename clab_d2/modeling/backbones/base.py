"""What our bottom-up networks can tell about themselves, and who asks for which of their maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from torch import Tensor, nn

from clab_d2.errors import ConfigError, DataError


@dataclass(frozen=True)
class InputFormat:
    """How a network's weights want their images.

    Attributes:
        mean, std: of each channel, for values of 0 to 255.
        channels: their order, "RGB" or "BGR".
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str = "RGB"


#: What networks trained on ImageNet expect, unless they say otherwise.
IMAGENET_RGB = InputFormat((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


class BottomUp(Backbone, ABC):
    """A network from an image to its maps, which knows what else there is to know about it.

    A map is called after its stride, as Detectron2 calls a ResNet's: ``res4`` has stride 16, and
    stride 2**n is ``res<n>`` in any of these networks. So one config's necks, heads and contrastive
    branch fit another backbone.

    Attributes:
        input_format: what its images have to be.
        config_key: what says which network it is, for messages.
        published: shape of each of the whole network's weights, also of those that are cut off.
    """

    input_format: InputFormat
    config_key: str
    published: Mapping[str, tuple[int, ...]]

    @abstractmethod
    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter, by name: 0 for the stem, then counted block by block."""

    @abstractmethod
    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass instead of keeping them, in place.

        Raises:
            ConfigError: it can't.
        """

    def from_published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give weights of the classification network this network's names.

        Args:
            weights: by the names that their publisher gave them.

        Returns:
            Those that have a place, by the names of this module's ``state_dict``.

        Raises:
            DataError: they are of another architecture.
        """
        own = self.state_dict()
        self.check_published(weights)
        return {name: value for name, value in weights.items() if name in own}

    def check_published(self, weights: Mapping[str, Tensor]) -> None:
        """Check weights, by this network's names, for signs that they are of another network.

        Raises:
            DataError: one has another shape, or is of a block that this network has not.
        """
        modules = {_module(name) for name in self.published}
        parts = {name.partition(".")[0] for name in self.published}
        for name, value in weights.items():
            shape, wanted = tuple(value.shape), self.published.get(name)
            if wanted is not None and shape != wanted:
                raise DataError(
                    f"{name} has shape {shape} in the file and {wanted} in the model; set "
                    f"{self.config_key} to what these weights are of"
                )
            # The classifier is no part of ours.
            if name.partition(".")[0] in parts and _module(name) not in modules:
                raise DataError(
                    f"{name} is in the file and not in the model; set {self.config_key} to what "
                    "these weights are of"
                )


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of each of a network's weights, by name."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def bottom_up_of(backbone: nn.Module) -> nn.Module:
    """The network below a backbone's neck; the backbone itself where it has none."""
    return getattr(backbone, "bottom_up", backbone)


def is_trained(module: nn.Module) -> bool:
    """Whether it has a parameter that is not frozen."""
    return any(parameter.requires_grad for parameter in module.parameters())


def layer_ids(network: nn.Module) -> dict[str, int]:
    """Depth of each parameter of a network below a neck, by name; see :class:`BottomUp`.

    In one that can't tell, such as Detectron2's ResNet, the blocks that lie in stages of their own
    are counted in order, and all else is the stem.
    """
    if isinstance(network, BottomUp):
        return network.layer_ids()
    depth, ids = 0, {}
    for stage_name, stage in network.named_children():
        for block_name, block in stage.named_children():
            depth += isinstance(stage, nn.Sequential)
            prefix = f"{stage_name}.{block_name}"
            ids.update((name, depth) for name, _ in block.named_parameters(prefix))
    return {name: ids.get(name, 0) for name, _ in network.named_parameters()}


def with_input_format(cfg: CfgNode, backbone: nn.Module) -> CfgNode:
    """A config whose ``PIXEL_MEAN`` and ``PIXEL_STD`` are what the backbone's images have to be.

    Returns:
        A copy, or ``cfg`` itself where the backbone says nothing of its images.

    Raises:
        ConfigError: ``INPUT.FORMAT`` gives its channels in another order.
    """
    wanted = getattr(bottom_up_of(backbone), "input_format", None)
    if wanted is None:
        return cfg
    if wanted.channels != cfg.INPUT.FORMAT:
        raise ConfigError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, and the weights of this backbone want their "
            f"images {wanted.channels}; set INPUT.FORMAT {wanted.channels}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(wanted.mean), list(wanted.std)
    return cfg


def feature_keys(cfg: CfgNode) -> tuple[str, ...]:
    """Nodes of ``cfg.MODEL`` whose ``IN_FEATURES`` name the maps that its detector takes."""
    name = cfg.MODEL.META_ARCHITECTURE
    entry = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return getattr(entry, "feature_keys", ("RPN", "ROI_HEADS"))


def wanted_features(cfg: CfgNode, offered: Sequence[str]) -> list[str]:
    """Maps that a network has to return: those that neck, heads and contrastive branch name.

    Args:
        cfg: the config.
        offered: names of all its maps, the deepest last.

    Returns:
        Some of ``offered``, in that order.

    Raises:
        ConfigError: a key names a map that only this network could have, and it has not.
    """
    model = cfg.MODEL
    needed: list[tuple[str, Iterable[str]]] = [
        ("MODEL.BACKBONE.OUT_FEATURES", model.BACKBONE.OUT_FEATURES)
    ]
    if model.BACKBONE.NAME == "build_single_scale_backbone":
        needed.append(("MODEL.NECK.IN_FEATURE", [model.NECK.IN_FEATURE]))
    elif model.BACKBONE.NAME in ("build_fpn_backbone", "build_light_fpn_backbone"):
        needed.append(("MODEL.FPN.IN_FEATURES", model.FPN.IN_FEATURES))
    # These may also name what a neck makes, and are looked at where all maps are known.
    wanted = {name for key in feature_keys(cfg) for name in model[key].IN_FEATURES}
    if model.CONTRASTIVE.ENABLED:
        wanted.add(model.CONTRASTIVE.IN_FEATURE)
    for key, names in needed:
        for name in names:
            if name not in offered:
                raise ConfigError(
                    f"{key} {name!r} is no map of the backbone; choose among {', '.join(offered)}"
                )
            wanted.add(name)
    return [name for name in offered if name in wanted] or list(offered)
