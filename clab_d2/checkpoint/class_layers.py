"""The layers with a row for each class: which classes a file's are of, and their rows by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from clab_d2.checkpoint.model_file import ModelCard

# Layers whose shape follows from the number of classes (a cascade has several of each).
CLASS_LAYER = re.compile(r"roi_heads\.box_predictor\.(\d+\.)?(cls_score|bbox_pred)\.")
_SCORE_LAYER = re.compile(r"roi_heads\.box_predictor\.(\d+\.)?cls_score\.weight")
# A one-stage detector's, with rows for each class of each anchor.
_DENSE_LAYER = re.compile(r"(dense_head\.head\.cls_score|prediction_aggregation\.output)\.")
_ZOO = "Detectron2 Model Zoo"


def names_in_file(content: Mapping[str, Any], card: ModelCard | None) -> list[str] | None:
    """Names of the classes that a file's detector tells apart, where they can be known.

    Args:
        content: the file's, with its weights under "model".
        card: what it says of its model, if anything.

    Returns:
        The card's; COCO's 80 for a detector of that many classes from Detectron2's model zoo; else
        None.
    """
    if card is not None:
        return list(card.class_names)
    rows = {len(w) for name, w in content["model"].items() if _SCORE_LAYER.fullmatch(name)}
    coco = MetadataCatalog.get("coco_2017_train").thing_classes
    if content.get("__author__") == _ZOO and rows == {len(coco) + 1}:
        return list(coco)
    return None


class KeptClasses(NamedTuple):
    """What :func:`keep_by_name` did.

    Attributes:
        weights: name -> value, as it was given but for the class layers.
        kept: the model's classes that the file has rows for.
        new: its other classes.
    """

    weights: dict[str, Any]
    kept: list[str]
    new: list[str]


def keep_by_name(
    weights: Mapping[str, Tensor | np.ndarray],
    own: Mapping[str, Tensor],
    theirs: Sequence[str],
    ours: Sequence[str],
) -> KeptClasses:
    """Give the class layers of a file the model's classes, in its order.

    Names agree regardless of case, and of ``_`` or ``-`` for a space. Rows of classes that the file
    doesn't have are the model's own; so is whatever has other widths than the model's.

    Args:
        weights: name -> value, as in the file.
        own: the model's.
        theirs: the file's classes.
        ours: the model's.
    """
    place = {_plain(name): index for index, name in enumerate(theirs)}
    pairs = [(i, place[_plain(n)]) for i, n in enumerate(ours) if _plain(n) in place]
    changed = dict(weights)
    for name, value in weights.items():
        match = CLASS_LAYER.match(name)
        if name in own and _DENSE_LAYER.match(name):
            changed[name] = _dense_layer(
                torch.as_tensor(value), own[name].detach().cpu(), pairs, len(theirs), len(ours)
            )
        if match is None or name not in own:
            continue
        old, new = torch.as_tensor(value), own[name].detach().cpu().clone()
        is_score = match[2] == "cls_score"
        per_class = 1 if is_score else 4
        lengths = [per_class * len(names) + is_score for names in (theirs, ours)]
        if [len(old), len(new)] != lengths or old.shape[1:] != new.shape[1:]:
            continue  # boxes that are the same for all classes, or told to be of another shape
        for i, j in pairs:
            to, source = per_class * i, per_class * j
            new[to : to + per_class] = old[source : source + per_class]
        if is_score:
            new[-1] = old[-1]  # background
        changed[name] = new
    kept = [ours[index] for index, _ in pairs]
    return KeptClasses(changed, kept, [name for name in ours if name not in kept])


def _dense_layer(
    old: Tensor, new: Tensor, pairs: Sequence[tuple[int, int]], num_theirs: int, num_ours: int
) -> Tensor:
    """Rows of anchors x classes; ``old`` itself where it is of another shape than told."""
    anchors = len(new) // num_ours
    if [len(old), len(new)] != [anchors * n for n in (num_theirs, num_ours)] or (
        old.shape[1:] != new.shape[1:]
    ):
        return old
    result = new.clone().view(anchors, num_ours, *new.shape[1:])
    source = old.view(anchors, num_theirs, *old.shape[1:])
    for i, j in pairs:
        result[:, i] = source[:, j]
    return result.view_as(new)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().casefold())
