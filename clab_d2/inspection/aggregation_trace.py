"""What the aggregations of a two-stage detector are given, noted while it detects.

Forward hooks of PyTorch do the noting, and are taken off at the end of a ``with`` block: a detector
knows nothing of it, and outside the block pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clab_d2.modeling.aggregation.base import BoxAggregation, RoIAggregation
from clab_d2.modeling.temporal_rcnn import TemporalRCNN


@dataclass
class RoICall:
    """A call of the aggregation on RoI features: the RoIs of one level.

    Attributes:
        part: the aggregation.
        arguments: of :meth:`RoIAggregation.forward`, by name.
        output: (R, C, S, S).
    """

    part: RoIAggregation
    arguments: dict[str, Any]
    output: Tensor


@dataclass
class BoxCall:
    """A call of the aggregation after one FC layer.

    Attributes:
        part: the aggregation.
        features, references, counts: see :meth:`BoxAggregation.forward`.
        output: (R, C).
    """

    part: BoxAggregation
    features: Tensor
    references: Sequence[Tensor]
    counts: Tensor | None
    output: Tensor


@dataclass
class Stage:
    """One box head's work on a key frame; a cascade has several.

    Attributes:
        boxes: (R, 4) its RoIs, xyxy in pixels of the image that went through the backbone.
        roi_calls: by feature level that has RoIs.
        box_calls: by FC layer.
        logits: (R, classes + 1).
    """

    boxes: Tensor
    roi_calls: list[RoICall] = field(default_factory=list)
    box_calls: list[BoxCall] = field(default_factory=list)
    logits: Tensor | None = None


class AggregationTrace:
    """Notes the stages of the key frames that a detector detects in, in a ``with`` block.

    Attributes:
        stages: in order. Of reference frames nothing is noted: these don't aggregate.
    """

    def __init__(self, model: TemporalRCNN) -> None:
        self.stages: list[Stage] = []
        self._heads = model.roi_heads
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> AggregationTrace:
        heads = self._heads
        self._hook(heads.pooler, self._pooled)
        if heads.roi_aggregation is not None:
            self._hook(heads.roi_aggregation, self._roi_features)
        for box_head in heads.box_heads:
            for part in box_head.modules():
                if isinstance(part, BoxAggregation):
                    self._hook(part, self._box_features)
        predictors = heads.box_predictor
        for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            self._hook(predictor, self._predicted)
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, module: nn.Module, note: Any) -> None:
        self._handles.append(module.register_forward_hook(note, with_kwargs=True))

    def _pooled(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        (boxes,) = args[1]
        assert isinstance(boxes, Boxes)
        self.stages.append(Stage(boxes.tensor))

    def _roi_features(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        names = ("roi_features", "boxes", "feature", "references", "counts")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        self.stages[-1].roi_calls.append(RoICall(module, arguments, output))

    def _box_features(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        features, references, counts = args
        self.stages[-1].box_calls.append(BoxCall(module, features, references, counts, output))

    def _predicted(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any],
        output: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        self.stages[-1].logits = output[0]
