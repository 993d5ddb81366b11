"""Detectors of MMTracking 0.x, MMDetection 2.x and the CLAB release -> our names and orders.

Names alone would load and yet detect nothing right: the RPN's channels stand in another order, and
the classes may. Sources: docs/method.md, 'Weights of other projects'; the anchor generators of
MMDetection and Detectron2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clab_d2.checkpoint.torchvision import BACKBONE_PREFIX, rename_resnet_key, resnet_facts
from clab_d2.errors import DataError

_RPN = "proposal_generator.rpn_head"
_PREDICTOR = "roi_heads.box_predictor"
_WB = r"(weight|bias)"

# Keys of the detector, without MMTracking's "detector." in front.
_DETECTOR_RULES = [
    (rf"neck\.convs\.0\.conv\.{_WB}", r"backbone.neck.\1"),
    (rf"rpn_head\.rpn_conv\.{_WB}", rf"{_RPN}.conv.\1"),
    (rf"rpn_head\.rpn_cls\.{_WB}", rf"{_RPN}.objectness_logits.\1"),
    (rf"rpn_head\.rpn_reg\.{_WB}", rf"{_RPN}.anchor_deltas.\1"),
    (
        rf"roi_head\.bbox_roi_extractor\.embed_network\.conv\.{_WB}",
        r"roi_heads.roi_aggregation.embed.\1",
    ),
    # "fc_embed" makes the queries, "ref_fc_embed" the keys, "ref_fc" the values of the attention,
    # and "fc" is what its result passes through.
    *(
        (
            rf"roi_head\.bbox_head\.aggregator\.(\d+)\.{theirs}\.{_WB}",
            rf"roi_heads.box_head.aggregations.\1.{ours}.\2",
        )
        for theirs, ours in [
            ("fc_embed", "query"),
            ("ref_fc_embed", "key"),
            ("ref_fc", "value"),
            ("fc", "output"),
        ]
    ),
    (rf"roi_head\.bbox_head\.fc_cls\.{_WB}", rf"{_PREDICTOR}.cls_score.\1"),
    (rf"roi_head\.bbox_head\.fc_reg\.{_WB}", rf"{_PREDICTOR}.bbox_pred.\1"),
]
_AUXILIARY_RULES = [
    (rf"auxiliary\.channel\.0\.{_WB}", r"contrastive_branch.loss.embedding.conv.\1"),
    (rf"auxiliary\.proj\.([02])\.{_WB}", r"contrastive_branch.loss.embedding.projection.\1.\2"),
]


@dataclass
class DetectorWeights:
    """A detector's weights under our names.

    Attributes:
        weights: our name -> tensor.
        description: what the checkpoint is, in a few words.
        num_classes: object classes, background not counted; None without a box head.
        num_anchors: anchors a position; None without an RPN.
        left_out: keys left out on purpose (batch counters).
        unplaced: keys that have no place.
    """

    weights: dict[str, Tensor]
    description: str
    num_classes: int | None
    num_anchors: int | None
    left_out: list[str] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)


def rename_detector(state: Mapping[str, Tensor]) -> DetectorWeights:
    """Give every weight our name; values and orders stay theirs.

    Args:
        state: keys under ``detector.`` (MMTracking) or without it (MMDetection); the CLAB
            release's branch under ``auxiliary.``.

    Raises:
        DataError: for a backbone that is no ResNet, a softmax RPN, or MMDetection 1.x.
    """
    prefix = "detector." if any(key.startswith("detector.") for key in state) else ""
    levels = _fpn_levels(state, prefix)
    weights: dict[str, Tensor] = {}
    left_out, unplaced = [], []
    for key, value in state.items():
        name = _rename(key, prefix, levels)
        if name is not None:
            weights[name] = value
        elif key.endswith("num_batches_tracked"):
            left_out.append(key)
        else:
            unplaced.append(key)
    _check_heads(weights)
    objectness = weights.get(f"{_RPN}.objectness_logits.weight")
    scores = weights.get(f"{_PREDICTOR}.cls_score.weight")
    return DetectorWeights(
        weights=weights,
        description=_describe(state, weights, prefix),
        num_classes=None if scores is None else scores.shape[0] - 1,
        num_anchors=None if objectness is None else objectness.shape[0],
        left_out=left_out,
        unplaced=unplaced,
    )


def reorder_anchors(weights: dict[str, Tensor], num_ratios: int) -> dict[str, Tensor]:
    """Put the RPN's channels into the order of Detectron2's anchors.

    MMDetection's anchors of a position run over ratios and, within a ratio, over scales;
    Detectron2's over sizes and, within a size, over ratios. Each anchor has one channel of
    objectness and four of deltas (dx, dy, dw, dh, in both).

    Args:
        weights: our names, MMDetection's order. Not changed.
        num_ratios: aspect ratios of the anchors.

    Returns:
        The same weights, the RPN's two last layers reordered.

    Raises:
        DataError: where the number of anchors is no multiple of ``num_ratios``.
    """
    reordered = dict(weights)
    for layer, channels in (("objectness_logits", 1), ("anchor_deltas", 4)):
        for kind in ("weight", "bias"):
            name = f"{_RPN}.{layer}.{kind}"
            if name not in weights:
                continue
            value = weights[name]
            num_anchors = value.shape[0] // channels
            if num_ratios < 1 or num_anchors % num_ratios:
                raise DataError(
                    f"the RPN has {num_anchors} anchors a position, which {num_ratios} aspect "
                    "ratios do not divide; give their number with --num-ratios or a --config-file"
                )
            grouped = value.unflatten(0, (num_ratios, num_anchors // num_ratios, channels))
            reordered[name] = grouped.transpose(0, 1).flatten(0, 2)
    return reordered


def reorder_classes(
    weights: dict[str, Tensor], theirs: Sequence[str], ours: Sequence[str]
) -> dict[str, Tensor]:
    """Put class scores and class-specific boxes into our order of classes; background stays last.

    Args:
        weights: our names, classes in the order ``theirs``. Not changed.
        theirs: class names as the checkpoint numbers them.
        ours: the same names in the order wanted.

    Raises:
        DataError: where the two are not the same names, or not as many as the weights have.
    """
    scores = weights.get(f"{_PREDICTOR}.cls_score.weight")
    if scores is None:
        return weights
    if len(theirs) != scores.shape[0] - 1 or len(set(theirs)) != len(theirs):
        raise DataError(
            f"the class order names {len(set(theirs))} different classes and the checkpoint scores "
            f"{scores.shape[0] - 1}; give all their names, in the checkpoint's order, with "
            "--class-order"
        )
    missing = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    if missing or extra:
        name, where = (missing[0], "checkpoint") if missing else (extra[0], "dataset of the config")
        raise DataError(
            f"class {name!r} is not one of the {where}'s; name the checkpoint's classes in its "
            "order with --class-order, or leave the class layers out with --new-classes"
        )
    order = torch.tensor([list(theirs).index(name) for name in ours])
    reordered = dict(weights)
    for kind in ("weight", "bias"):
        scores = weights[f"{_PREDICTOR}.cls_score.{kind}"]
        reordered[f"{_PREDICTOR}.cls_score.{kind}"] = torch.cat([scores[order], scores[-1:]])
        boxes = weights.get(f"{_PREDICTOR}.bbox_pred.{kind}")
        if boxes is not None and boxes.shape[0] > 4:  # else: one box for all classes
            grouped = boxes.unflatten(0, (-1, 4))
            reordered[f"{_PREDICTOR}.bbox_pred.{kind}"] = grouped[order].flatten(0, 1)
    return reordered


def drop_class_layers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what depends on the set of classes, for training on others."""
    return {k: v for k, v in weights.items() if not k.startswith(f"{_PREDICTOR}.")}


def _rename(key: str, prefix: str, levels: Mapping[str, str]) -> str | None:
    if key.endswith("num_batches_tracked"):
        return None
    for pattern, template in _AUXILIARY_RULES:
        if match := re.fullmatch(pattern, key):
            return match.expand(template)
    if not key.startswith(prefix):
        return None
    key = key[len(prefix) :]
    if key.startswith("backbone."):
        name = rename_resnet_key(key[len("backbone.") :])
        return None if name is None else BACKBONE_PREFIX + name
    if match := re.fullmatch(rf"neck\.(lateral|fpn)_convs\.(\d+)\.conv\.{_WB}", key):
        if match[2] not in levels:
            return None
        kind = "lateral" if match[1] == "lateral" else "output"
        return f"backbone.fpn_{kind}{levels[match[2]]}.{match[3]}"
    if match := re.fullmatch(rf"roi_head\.bbox_head\.shared_fcs\.(\d+)\.{_WB}", key):
        return f"roi_heads.box_head.fc{int(match[1]) + 1}.{match[2]}"  # Detectron2 counts from 1
    for pattern, template in _DETECTOR_RULES:
        if match := re.fullmatch(pattern, key):
            return match.expand(template)
    return None


def _fpn_levels(state: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Which ResNet stage each lateral conv of an FPN belongs to; the last takes res5."""
    pattern = re.compile(rf"{re.escape(prefix)}neck\.lateral_convs\.(\d+)\.conv\.weight")
    indices = sorted(int(match[1]) for key in state if (match := pattern.fullmatch(key)))
    return {str(index): str(index + 6 - len(indices)) for index in indices}


def _check_heads(weights: Mapping[str, Tensor]) -> None:
    objectness = weights.get(f"{_RPN}.objectness_logits.weight")
    deltas = weights.get(f"{_RPN}.anchor_deltas.weight")
    if objectness is not None and deltas is not None and objectness.shape[0] * 4 != deltas.shape[0]:
        raise DataError(
            f"rpn_cls has {objectness.shape[0]} channels and rpn_reg {deltas.shape[0]}: only an "
            "RPN with one sigmoid an anchor can be converted (use_sigmoid=True)"
        )
    scores = weights.get(f"{_PREDICTOR}.cls_score.weight")
    boxes = weights.get(f"{_PREDICTOR}.bbox_pred.weight")
    if scores is None or boxes is None:
        return
    if scores.shape[0] * 4 == boxes.shape[0] and boxes.shape[0] > 4:
        raise DataError(
            f"fc_cls scores {scores.shape[0]} classes and fc_reg has as many boxes: MMDetection "
            "1.x, which puts the background first; upgrade the file with MMDetection 2.x's "
            "upgrade_model_version.py, then convert it"
        )
    if boxes.shape[0] not in (4, (scores.shape[0] - 1) * 4):
        raise DataError(
            f"fc_cls has {scores.shape[0]} rows and fc_reg {boxes.shape[0]}, which do not belong "
            "together; give a whole checkpoint"
        )


def _describe(state: Mapping[str, Tensor], weights: Mapping[str, Tensor], prefix: str) -> str:
    has_selsa = any(key.startswith("roi_heads.box_head.aggregations.") for key in weights)
    if any(key.startswith("roi_heads.roi_aggregation.") for key in weights):
        detector = "Temporal RoI Align"
    elif has_selsa:
        detector = "SELSA"
    elif any(key.startswith("roi_heads.") for key in weights):
        detector = "Faster R-CNN"
    else:
        detector = "RPN or backbone"
    if any(key.startswith("contrastive_branch.") for key in weights):
        origin = "CLAB release"
    else:
        origin = "MMTracking" if prefix else "MMDetection"
    return f"{origin} checkpoint, {detector}, {resnet_facts(state, f'{prefix}backbone.')}"
