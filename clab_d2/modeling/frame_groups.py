"""Frames whose maps have the same sizes go through a head together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clab_d2.modeling.reference_memory import FrameFeatures


def same_size(frames: Sequence[FrameFeatures]) -> list[list[FrameFeatures]]:
    """Frames whose maps have the same sizes, together."""
    groups: dict[tuple[torch.Size, ...], list[FrameFeatures]] = {}
    for frame in frames:
        sizes = tuple(feature.shape for feature in frame.features.values())
        groups.setdefault(sizes, []).append(frame)
    return list(groups.values())


def joined_maps(frames: Sequence[FrameFeatures], names: Sequence[str]) -> dict[str, Tensor]:
    """The maps of some names of N frames of one size, (N, C, h, w) each."""
    return {
        name: frames[0].features[name]
        if len(frames) == 1
        else torch.cat([frame.features[name] for frame in frames])
        for name in names
    }
