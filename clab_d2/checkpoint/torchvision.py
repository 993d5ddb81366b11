"""ResNets under torchvision's names (MMDetection's and MMTracking's too) -> Detectron2's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clab_d2.errors import DataError

# Where the ResNet sits in our models, whatever neck they have.
BACKBONE_PREFIX = "backbone.bottom_up."

_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


@dataclass(frozen=True)
class ResNetFacts:
    """What a ResNet's weights tell of its architecture.

    Attributes:
        depth: 18 to 152, or None for a number of blocks that no usual ResNet has.
        num_groups: groups of the 3x3 convs in the blocks (1 but for ResNeXt).
        width_per_group: channels of each group in the first stage.
        stem_channels: channels after the stem.
        res2_channels: channels after the first stage.
    """

    depth: int | None
    num_groups: int
    width_per_group: int
    stem_channels: int
    res2_channels: int

    def __str__(self) -> str:
        depth = self.depth or "of unusual depth"
        if self.num_groups > 1:
            return f"ResNeXt-{depth} {self.num_groups}x{self.width_per_group}d"
        usual = self.width_per_group == self.stem_channels == 64
        separator = " " if self.depth is None else "-"
        width = "" if usual else f" (stem {self.stem_channels}, block {self.width_per_group} wide)"
        return f"ResNet{separator}{depth}{width}"

    @property
    def config_keys(self) -> str:
        """The config keys, with values, of a backbone that takes these weights."""
        values = {
            "DEPTH": self.depth,
            "NUM_GROUPS": self.num_groups,
            "WIDTH_PER_GROUP": self.width_per_group,
            "STEM_OUT_CHANNELS": self.stem_channels,
            "RES2_OUT_CHANNELS": self.res2_channels,
        }
        return " ".join(f"MODEL.RESNETS.{key} {value}" for key, value in values.items())


def resnet_facts(state: Mapping[str, Tensor], prefix: str = "") -> ResNetFacts:
    """Tell depth, groups and widths of a ResNet from the shapes of its weights.

    Args:
        state: weights under torchvision's names, after ``prefix``.
        prefix: what stands before ``conv1.weight`` and ``layer1...``.

    Raises:
        DataError: where it has no ordinary stem and first block.
    """
    blocks = [
        len(
            {
                m[1]
                for key in state
                if (m := re.match(rf"{re.escape(prefix)}layer{i}\.(\d+)\.", key))
            }
        )
        for i in range(1, 5)
    ]
    try:
        stem = state[f"{prefix}conv1.weight"]
        first = state[f"{prefix}layer1.0.conv1.weight"]
        second = state[f"{prefix}layer1.0.conv2.weight"]
    except KeyError as error:
        raise DataError(
            f"the weights have no {error.args[0]}: this is no ResNet with torchvision's names "
            "(deep-stem variants are not supported); give one of ResNet-50/101 or ResNeXt-101"
        ) from None
    third = state.get(f"{prefix}layer1.0.conv3.weight")
    return ResNetFacts(
        depth=_DEPTHS.get((third is not None, tuple(blocks))),
        num_groups=first.shape[0] // second.shape[1],
        width_per_group=second.shape[1],
        stem_channels=stem.shape[0],
        res2_channels=(second if third is None else third).shape[0],
    )


_PARAMETER = r"(weight|bias|running_mean|running_var)"
_RULES = [
    (re.compile(r"conv1\.weight"), "stem.conv1.weight"),
    (re.compile(rf"bn1\.{_PARAMETER}"), r"stem.conv1.norm.\1"),
    (re.compile(r"layer(\d)\.(\d+)\.conv([123])\.weight"), r"res{stage}.\2.conv\3.weight"),
    (re.compile(rf"layer(\d)\.(\d+)\.bn([123])\.{_PARAMETER}"), r"res{stage}.\2.conv\3.norm.\4"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.0\.weight"), r"res{stage}.\2.shortcut.weight"),
    (
        re.compile(rf"layer(\d)\.(\d+)\.downsample\.1\.{_PARAMETER}"),
        r"res{stage}.\2.shortcut.norm.\3",
    ),
]


def rename_resnet_key(key: str) -> str | None:
    """Detectron2's name, within its ResNet, of one of torchvision's weights.

    ``layer1`` is ``res2``, a block's ``downsample`` its ``shortcut``, and a conv's batch norm is
    the conv's ``norm``. Values pass unchanged, running statistics included.

    Returns:
        The new name without any prefix, or None for a key that a ResNet backbone doesn't have.
    """
    for pattern, template in _RULES:
        match = pattern.fullmatch(key)
        if match:
            stage = int(match[1]) + 1 if key.startswith("layer") else None
            return match.expand(template.replace("{stage}", str(stage)))
    return None


def convert_resnet(
    state: Mapping[str, Tensor], prefix: str = ""
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Rename ImageNet classification weights to a backbone's.

    Args:
        state: weights under torchvision's names.
        prefix: what stands before those names ("backbone." in MMClassification's files).

    Returns:
        The backbone's weights by our names; the keys left out on purpose (the classifier, batch
        counters); the keys that have no place.
    """
    placed: dict[str, Tensor] = {}
    left_out, unplaced = [], []
    for key, value in state.items():
        name = rename_resnet_key(key[len(prefix) :]) if key.startswith(prefix) else None
        if name is not None:
            placed[BACKBONE_PREFIX + name] = value
        elif key.endswith("num_batches_tracked") or re.match(r"(head\.)?fc\.(weight|bias)$", key):
            left_out.append(key)
        else:
            unplaced.append(key)
    return placed, left_out, unplaced
