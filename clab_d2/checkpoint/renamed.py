"""Weights saved under names that the model's parts had in earlier versions, or in Detectron2."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

Value = TypeVar("Value")

#: Old name -> new name, as a pattern for the start of a weight's name and what takes its place.
#: In the order in which the parts were renamed, so that a name may pass through several.
RENAMED: tuple[tuple[str, str], ...] = (
    (r"roi_heads\.temporal_roi_align\.", r"roi_heads.roi_aggregation."),
    (r"roi_heads\.box_head\.selsa\.(\d+)\.", r"roi_heads.box_head.aggregations.\1."),
    # Detectron2's "C4" detectors have the stage in the ROI heads themselves.
    (r"roi_heads\.res5\.", r"roi_heads.box_head.res5."),
    (r"contrastive_branch\.(conv|projection)\.", r"contrastive_branch.loss.embedding.\1."),
    # Detectron2's one-stage detectors are their head's owner.
    (r"head\.", "dense_head.head."),
    # Detectron2's names, which count from 1
    *(
        (rf"roi_heads\.box_head\.fcs\.{index}\.", f"roi_heads.box_head.fc{index + 1}.")
        for index in range(10)
    ),
)


def rename_old_weights(
    weights: Mapping[str, Value],
    model_names: Collection[str],
    renamed: tuple[tuple[str, str], ...] = RENAMED,
) -> tuple[dict[str, Value], dict[str, str]]:
    """Give weights of an earlier version the names of today's model.

    A weight is renamed only where the model has the new name and not the old one, and the file
    does not have the new one itself: files of this version, and of others' models, pass unchanged.

    Args:
        weights: name -> value, as in the file.
        model_names: the names in the model.
        renamed: pairs of pattern and replacement, oldest first.

    Returns:
        The weights in the file's order, and old name -> new name of those that were renamed.
    """
    known = set(model_names)
    new_names: dict[str, str] = {}
    for name in weights:
        new = None if name in known else _new_name(name, known, renamed)
        if new is not None and new not in weights:
            new_names[name] = new
    return {new_names.get(name, name): value for name, value in weights.items()}, new_names


def _new_name(
    name: str, known: Collection[str], renamed: tuple[tuple[str, str], ...]
) -> str | None:
    """The name, among ``known``, that a part's renamings lead to; None if they lead to none."""
    for pattern, replacement in renamed:
        name = re.sub(rf"\A(?:{pattern})", replacement, name)
        if name in known:
            return name
    return None
