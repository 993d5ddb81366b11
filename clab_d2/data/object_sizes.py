"""How large objects are at a detector's input, against its anchors and strides, and what would fit.

Functions of boxes: arrays in, arrays and numbers out. What a user is told of a config is put
together in :mod:`clab_d2.engine.size_check`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from clab_d2.data.clip_augmentation import resize_transform

# An object of one cell of the feature map is one vector there, of two a blur of four: RoIAlign's
# 7x7 bins then hold what interpolation makes of them.
TOO_SMALL_STRIDES = 2.0
# As large as COCO's limit between small and medium objects (32 pixels) on a map of stride 8.
WELL_SIZED_STRIDES = 4.0

# Frames enlarged further than this show no more of an object, and cost as if they did.
_MAX_ENLARGEMENT = 2.0
_EDGE_MULTIPLE = 32
# Anchors of nearer sizes (or ratios) than this overlap so well that one of them is idle.
_MIN_SPACING = 1.15
_MAX_OBJECTS_TO_CLUSTER = 20_000
# Anchors are proposed where they match at least so many more of the objects.
_LEAST_GAIN = 0.02

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class InputSize:
    """How frames are resized; see :func:`clab_d2.data.clip_augmentation.resize_transform`.

    Attributes:
        short_edge: the shorter edge in pixels (``INPUT.MIN_SIZE_TEST``); 0 leaves frames as they
            are.
        max_size: limit of the longer edge (``INPUT.MAX_SIZE_TEST``).
        backend: "pillow" or "opencv".
    """

    short_edge: int
    max_size: int
    backend: str = "opencv"

    @classmethod
    def at_test(cls, cfg: CfgNode) -> InputSize:
        """The size that a config tests at, which it should train at or about."""
        return cls(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.RESIZE_BACKEND)

    def of_frame(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a frame at the model's input."""
        resize = resize_transform(height, width, self.short_edge, self.max_size, self.backend)
        if isinstance(resize, T.NoOpTransform):
            return width, height
        return resize.new_w, resize.new_h


@dataclass(frozen=True)
class ObjectBoxes:
    """Objects, each with the size of the frame it is in.

    Attributes:
        xywh: (N, 4) float, left, top, width, height in pixels of the frame.
        frame: (N, 2) int, width and height of the frame in pixels.
    """

    xywh: np.ndarray
    frame: np.ndarray

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> ObjectBoxes:
        """The objects of dataset dicts; crowds and boxes without area are left out."""
        boxes, frames = [], []
        for record in records:
            for annotation in record["annotations"]:
                box = BoxMode.convert(
                    annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS
                )
                if not annotation.get("iscrowd") and min(box[2:]) > 0:
                    boxes.append(box)
                    frames.append((record["width"], record["height"]))
        return cls(
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array(frames, dtype=np.int64).reshape(-1, 2),
        )

    @classmethod
    def join(cls, parts: Sequence[ObjectBoxes]) -> ObjectBoxes:
        """The objects of several sets."""
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("xywh", "frame")))

    def __len__(self) -> int:
        return len(self.xywh)

    @property
    def side(self) -> np.ndarray:
        """(N,) square root of the boxes' area."""
        return np.sqrt(self.xywh[:, 2] * self.xywh[:, 3])

    @property
    def ratio(self) -> np.ndarray:
        """(N,) height over width, which is how Detectron2 counts ``ASPECT_RATIOS``."""
        return self.xywh[:, 3] / self.xywh[:, 2]

    def resized(self, size: InputSize) -> ObjectBoxes:
        """The objects as they are at the model's input."""
        frames, which = np.unique(self.frame, axis=0, return_inverse=True)
        resized = np.array([size.of_frame(*map(int, frame)) for frame in frames]).reshape(-1, 2)
        new = resized[which.reshape(-1)]
        scale = new / self.frame
        return ObjectBoxes(self.xywh * np.concatenate([scale, scale], axis=1), new)


@dataclass(frozen=True)
class Anchors:
    """Anchors as Detectron2's ``DefaultAnchorGenerator`` lays them out.

    Attributes:
        strides: of each feature map, in pixels of the model's input.
        sizes: square roots of the anchors' areas; a list for each map, or one for all of them.
        ratios: height over width; a list for each map, or one for all.
        offset: of the first anchor's centre, in strides.
        boundary: anchors that reach over the border by more pixels than this take no part in
            training (``MODEL.RPN.BOUNDARY_THRESH``); all do where it is negative.
    """

    strides: Sequence[int]
    sizes: Sequence[Sequence[float]]
    ratios: Sequence[Sequence[float]]
    offset: float = 0.0
    boundary: float = -1.0

    def best_iou(self, objects: ObjectBoxes) -> np.ndarray:
        """(N,) the greatest IoU that an anchor has with each object, both at the model's input.

        Overlap falls with distance along either axis, so that of all anchors of one shape the one
        with the nearest centre is the best. Anchors that only padding has are not looked at.
        """
        best = np.zeros(len(objects))
        for level, stride in enumerate(self.strides):
            sizes, ratios = _of_level(self.sizes, level), _of_level(self.ratios, level)
            for size in sizes:
                for ratio in ratios:
                    width = size / ratio**0.5
                    overlap_x = self._overlap(objects, 0, stride, width)
                    overlap_y = self._overlap(objects, 1, stride, width * ratio)
                    common = overlap_x * overlap_y
                    union = objects.xywh[:, 2] * objects.xywh[:, 3] + size**2 - common
                    np.maximum(best, common / union, out=best)
        return best

    def _overlap(
        self, objects: ObjectBoxes, axis: int, stride: int, length: float
    ) -> np.ndarray:
        """(N,) the most that anchors of a length share with each object along one axis."""
        start, extent = objects.xywh[:, axis], objects.xywh[:, axis + 2]
        frame = objects.frame[:, axis]
        first, last = np.zeros(len(objects)), np.ceil(frame / stride) - 1
        if self.boundary >= 0:
            nearest_start = length / 2 - self.boundary  # of a centre to either border
            first = np.maximum(first, np.ceil(nearest_start / stride - self.offset))
            # The right and lower border itself is outside.
            beyond = (frame - nearest_start) / stride - self.offset
            last = np.minimum(last, np.ceil(beyond) - 1)
        wanted = (start + extent / 2) / stride - self.offset
        centre = (np.clip(np.round(wanted), first, last) + self.offset) * stride
        low = np.maximum(start, centre - length / 2)
        high = np.minimum(start + extent, centre + length / 2)
        return np.where(first <= last, np.maximum(high - low, 0), 0)


def is_too_small(objects: ObjectBoxes, stride: int) -> bool:
    """Whether most objects, at the model's input, are smaller than two cells of a feature map.

    Args:
        objects: the objects at the model's input.
        stride: of the finest map that detects, in pixels.
    """
    return len(objects) > 0 and bool(np.median(objects.side) < TOO_SMALL_STRIDES * stride)


def too_small_line(objects: ObjectBoxes, stride: int) -> str:
    """One line on objects, at the model's input, that are too small; see :func:`is_too_small`."""
    width, height = np.median(objects.xywh[:, 2:], axis=0)
    share = (objects.side < TOO_SMALL_STRIDES * stride).mean()
    return (
        f"most objects are too small at the model's input: the median is {width:.0f}x{height:.0f} "
        f"pixels, and {share:.0%} are smaller than {TOO_SMALL_STRIDES:g} cells of the feature map "
        f"(stride {stride})"
    )


def small_objects_warning(
    cfg: CfgNode, records: Iterable[Mapping[str, Any]], stride: int
) -> str | None:
    """One line, with the remedy, where most of a training's objects are too small for its config.

    Args:
        cfg: the config.
        records: dataset dicts of the key frames.
        stride: of the finest map that detects, in pixels of the model's input.
    """
    objects = ObjectBoxes.from_records(records).resized(InputSize.at_test(cfg))
    if not is_too_small(objects, stride):
        return None
    return (
        f"{too_small_line(objects, stride)}; raise INPUT.MIN_SIZE_* and MAX_SIZE_*: "
        "tools/check_dataset.py --config-file says to what, and proposes anchors"
    )


def propose_input(objects: ObjectBoxes, current: InputSize, stride: int) -> InputSize | None:
    """The size of the model's input at which the median object covers four cells in each direction.

    Args:
        objects: the objects at their frames' own size.
        current: the size as it is.
        stride: of the finest map that detects, in pixels.

    Returns:
        Edges in multiples of 32, the longer one's limit such that the shorter one is reached.
        Frames are enlarged to twice their own size at most. None where objects are large enough
        already, or no larger size is to be had.
    """
    median_now = np.median(objects.resized(current).side)
    wanted = WELL_SIZED_STRIDES * stride
    if median_now >= wanted:
        return None
    scale = min(wanted / np.median(objects.side), _MAX_ENLARGEMENT)
    short, long = objects.frame.min(axis=1), objects.frame.max(axis=1)
    short_edge = _round_up(scale * np.median(short))
    max_size = _round_up(short_edge * np.quantile(long / short, 0.95))
    proposed = InputSize(short_edge, max_size, current.backend)
    return proposed if np.median(objects.resized(proposed).side) > median_now else None


def propose_anchors(objects: ObjectBoxes, anchors: Anchors, threshold: float) -> Anchors | None:
    """Anchors, as many as there are, that more of the objects match.

    Sizes and ratios are k-means centres of the logarithms of the objects' (an IoU falls with the
    ratio of two sizes, not with their difference), or sizes in equal ratios from small to large
    objects. Where each map of a pyramid has sizes of its own, these are all scaled alike instead.
    Of all this and the anchors as they are, that is taken which reaches the threshold with the most
    objects.

    Args:
        objects: the objects at the model's input.
        anchors: the anchors as they are.
        threshold: IoU from which on an anchor is an object's.

    Returns:
        None where nothing better than the anchors as they are was found.
    """
    counts = [len(sizes) for sizes in anchors.sizes]
    sides, total = objects.side, sum(counts)
    low, median, high = np.quantile(sides, (0.05, 0.5, 0.95))
    if len(counts) == 1:
        size_choices = [_cluster(sides, total), np.geomspace(low, high, total + 2)[1:-1]]
    else:  # a pyramid, whose coarse maps must not have anchors of the fine ones' size
        flat = np.array([size for level in anchors.sizes for size in level], dtype=np.float64)
        size_choices = [flat * (median / size) for size in flat]
    ratio_choices = [anchors.ratios]
    if len(anchors.ratios) == 1:
        centres = _cluster(objects.ratio, len(anchors.ratios[0]))
        ratio_choices.append([_apart(centres, digits=2)])

    def fit(candidate: Anchors) -> tuple[float, float]:
        best = candidate.best_iou(objects)
        return float((best >= threshold).mean()), float(best.mean())

    candidates = [
        Anchors(
            anchors.strides,
            _in_lists(_apart(np.sort(sizes), digits=0), counts),
            ratios,
            anchors.offset,
            anchors.boundary,
        )
        for sizes in size_choices
        for ratios in ratio_choices
    ]
    found = max(candidates, key=fit)
    return found if fit(found)[0] >= fit(anchors)[0] + _LEAST_GAIN else None


def _of_level(values: Sequence[Sequence[float]], level: int) -> Sequence[float]:
    """The values of a feature map, where one list may stand for all maps."""
    return values[0] if len(values) == 1 else values[level]


def _round_up(edge: float) -> int:
    return int(np.ceil(edge / _EDGE_MULTIPLE - 1e-9)) * _EDGE_MULTIPLE


def _cluster(values: np.ndarray, number: int) -> np.ndarray:
    """(number,) ascending k-means centres of positive values, on a logarithmic scale."""
    logs = np.sort(np.log(values))
    logs = logs[:: len(logs) // _MAX_OBJECTS_TO_CLUSTER + 1]
    centres = np.quantile(logs, (np.arange(number) + 0.5) / number)
    for _ in range(50):
        # In one dimension the nearest centre changes halfway between two of them.
        groups = np.split(logs, np.searchsorted(logs, (centres[1:] + centres[:-1]) / 2))
        means = [
            group.mean() if len(group) else old for group, old in zip(groups, centres, strict=True)
        ]
        if np.allclose(means, centres):
            break
        centres = np.array(means)
    return np.exp(centres)


def _apart(values: np.ndarray, digits: int) -> list[float]:
    """Ascending values rounded, each at least 15% greater than the one before."""
    kept: list[float] = []
    unit = 10.0**-digits
    for value in values.tolist():
        value = max(round(value, digits), unit)
        if kept and value < kept[-1] * _MIN_SPACING:
            value = round(float(np.ceil(kept[-1] * _MIN_SPACING / unit - 1e-9)) * unit, digits)
        kept.append(value)
    return [int(value) for value in kept] if digits == 0 else kept


def _in_lists(values: list[float], counts: Sequence[int]) -> list[list[float]]:
    """Values dealt out to lists of the given lengths, in order."""
    ends = np.cumsum(counts).tolist()
    return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]
