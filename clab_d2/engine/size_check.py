"""A config's input size, anchors and strides against the objects of a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from torch import nn

from clab_d2.data.object_sizes import (
    QUANTILES,
    WELL_SIZED_STRIDES,
    Anchors,
    InputSize,
    ObjectBoxes,
    is_too_small,
    propose_anchors,
    propose_input,
    too_small_line,
)
from clab_d2.errors import ConfigError


def strides_of(cfg: CfgNode, features: Mapping[str, ShapeSpec]) -> list[int]:
    """Strides of the maps that the RPN detects in, of those that a backbone gives.

    Args:
        cfg: ``MODEL.RPN.IN_FEATURES`` names them.
        features: ``backbone.output_shape()``; maps that it lacks are left out, as a detector of
            another kind has no RPN.
    """
    names = cfg.MODEL.RPN.IN_FEATURES
    return [int(features[name].stride) for name in names if name in features]


def finest_stride(cfg: CfgNode, model: nn.Module) -> int | None:
    """The least of a model's strides; None for a model without backbone or RPN."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        return None
    return min(strides_of(cfg, backbone.output_shape()), default=None)


def anchors_of(cfg: CfgNode) -> Anchors:
    """The config's anchors; its backbone is built for the strides, without memory for weights.

    Raises:
        ConfigError: they are not laid out as ``DefaultAnchorGenerator`` does.
    """
    generator = cfg.MODEL.ANCHOR_GENERATOR
    if generator.NAME != "DefaultAnchorGenerator":
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR.NAME is {generator.NAME}; only the anchors of "
            "DefaultAnchorGenerator can be compared with objects"
        )
    with torch.device("meta"):
        features = build_backbone(cfg).output_shape()
    return Anchors(
        strides_of(cfg, features),
        generator.SIZES,
        generator.ASPECT_RATIOS,
        generator.OFFSET,
        cfg.MODEL.RPN.BOUNDARY_THRESH,
    )


def size_report(cfg: CfgNode, objects: ObjectBoxes) -> list[str]:
    """What a user should know of a dataset's objects before training with a config.

    Args:
        cfg: ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST`` decide the input's size.
        objects: at their frames' own size.

    Returns:
        Lines: sizes at the model's input, how many are small against the strides, how many an
        anchor fits, a warning where most are too small; then the proposed overrides, if any.
    """
    if not len(objects):
        return ["object sizes: there is no object to look at"]
    size, anchors = InputSize.at_test(cfg), anchors_of(cfg)
    stride = min(anchors.strides)
    at_input = objects.resized(size)
    lines = [
        f"{len(objects)} objects at the model's input, INPUT.MIN_SIZE_TEST {size.short_edge} "
        f"MAX_SIZE_TEST {size.max_size} ({_frame_sizes(objects, size)}), in pixels:",
        *_table(at_input),
        *_fit_lines(cfg, at_input, anchors),
    ]
    if is_too_small(at_input, stride):
        lines.append(f"warning: {too_small_line(at_input, stride)}")
    smaller = _half_is_enough(at_input, size, stride)
    if smaller is not None:
        lines.append(
            f"all but the smallest objects are over {2 * WELL_SIZED_STRIDES:g} cells wide: half "
            "of this input size would show them, too, in a quarter of the time"
        )
    new_size = smaller or propose_input(objects, size, stride)
    return lines + _proposal(cfg, objects, anchors, new_size)


def _half_is_enough(at_input: ObjectBoxes, size: InputSize, stride: int) -> InputSize | None:
    """Half the size, where all but the smallest objects stay well-sized at it."""
    least = np.quantile(at_input.side, QUANTILES[0])
    # Frames that are left as they are (short_edge 0) have no size to halve.
    if size.short_edge < 2 or least < 2 * WELL_SIZED_STRIDES * stride:
        return None
    return InputSize(size.short_edge // 2, size.max_size // 2, size.backend)


def _frame_sizes(objects: ObjectBoxes, size: InputSize) -> str:
    """The frames' commonest size and what becomes of it."""
    frames, counts = np.unique(objects.frame, axis=0, return_counts=True)
    width, height = map(int, frames[counts.argmax()])
    new_width, new_height = size.of_frame(width, height)
    which = "frames" if len(frames) == 1 else "most frames"
    return f"{which} {width}x{height} -> {new_width}x{new_height}"


def _table(objects: ObjectBoxes) -> list[str]:
    rows = {
        "sqrt(area)": (objects.side, ".1f"),
        "width": (objects.xywh[:, 2], ".1f"),
        "height": (objects.xywh[:, 3], ".1f"),
        "height/width": (objects.ratio, ".2f"),
    }
    lines = ["  smallest to largest " + "".join(f"{quantile:>8.0%}" for quantile in QUANTILES)]
    for name, (values, form) in rows.items():
        cells = "".join(f"{value:>8{form}}" for value in np.quantile(values, QUANTILES))
        lines.append(f"  {name:<19} {cells}")
    return lines


def _fit_lines(cfg: CfgNode, objects: ObjectBoxes, anchors: Anchors) -> list[str]:
    stride = min(anchors.strides)
    below_one, below_two = ((objects.side < n * stride).mean() for n in (1, 2))
    threshold, best = cfg.MODEL.RPN.IOU_THRESHOLDS[-1], anchors.best_iou(objects)
    lines = [
        f"strides {', '.join(map(str, anchors.strides))}: {below_one:.0%} of the objects are "
        f"smaller than one cell of the finest map, {below_two:.0%} than two",
        f"anchors of sizes {anchors.sizes} and ratios {anchors.ratios}: "
        f"{_matched(best, threshold)}",
    ]
    least = cfg.MODEL.RPN.MIN_LOW_QUALITY_IOU
    if (best < least).any():
        lines.append(
            f"{(best < least).mean():.0%} have none at {least:g} "
            "(MODEL.RPN.MIN_LOW_QUALITY_IOU): the RPN is not trained on them"
        )
    return lines


def _matched(best: np.ndarray, threshold: float) -> str:
    return (
        f"{(best >= threshold).mean():.0%} of the objects have one at an IoU of {threshold:g} or "
        f"more (MODEL.RPN.IOU_THRESHOLDS), best IoU {np.median(best):.2f} in the median"
    )


def _proposal(
    cfg: CfgNode, objects: ObjectBoxes, anchors: Anchors, new_size: InputSize | None
) -> list[str]:
    size, threshold = InputSize.at_test(cfg), cfg.MODEL.RPN.IOU_THRESHOLDS[-1]
    at_input = objects.resized(new_size or size)
    new_anchors = propose_anchors(at_input, anchors, threshold)
    overrides: dict[str, object] = {}
    if new_size is not None:
        short_edge, max_size = new_size.short_edge, new_size.max_size
        overrides |= {
            "INPUT.MIN_SIZE_TRAIN": (short_edge,),
            "INPUT.MAX_SIZE_TRAIN": max_size,
            "INPUT.MIN_SIZE_TEST": short_edge,
            "INPUT.MAX_SIZE_TEST": max_size,
        }
    if new_anchors is not None:
        overrides["MODEL.ANCHOR_GENERATOR.SIZES"] = [list(s) for s in new_anchors.sizes]
        if new_anchors.ratios != anchors.ratios:
            overrides["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] = new_anchors.ratios
    if not overrides:
        return ["no input size or anchors found that suit these objects better: nothing to propose"]
    told = f"sqrt(area) {np.median(at_input.side):.0f} in the median"
    if new_size is not None:
        cost = np.prod(at_input.frame, axis=1).mean()
        cost /= np.prod(objects.resized(size).frame, axis=1).mean()
        speed = "slower" if cost > 1 else "faster"
        told += f" (frames of {cost:.2g} times as many pixels: {speed} by about as much)"
    best = (new_anchors or anchors).best_iou(at_input)
    words = " ".join(f"{key} {shlex.quote(str(value))}" for key, value in overrides.items())
    return [f"proposed: {told}, {_matched(best, threshold)}:", words]
