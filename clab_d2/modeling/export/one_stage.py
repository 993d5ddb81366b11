"""The two graphs of :class:`clab_d2.modeling.temporal_dense.TemporalDense`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.dense_heads.base import DenseHead
from clab_d2.modeling.dense_heads.box_features import BoxFeatures
from clab_d2.modeling.dense_heads.selection import Selection
from clab_d2.modeling.export.anchors import ExportedAnchors
from clab_d2.modeling.export.backbone import exported_backbone
from clab_d2.modeling.export.base import (
    ExportGraphs,
    FrameGraph,
    KeyFrameGraph,
    refuse_map_aggregation,
)
from clab_d2.modeling.export.boxes import (
    apply_deltas,
    apply_linear_deltas,
    clip_boxes,
    not_repeated,
)
from clab_d2.modeling.export.pooling import ExportedPooler

if TYPE_CHECKING:
    from clab_d2.modeling.temporal_dense import TemporalDense


class ExportedSelection(nn.Module):
    """A one-stage head and what :class:`Selection` chooses of its predictions at test, for one
    frame, in the same order: a fixed number of rows, padded."""

    def __init__(self, head: DenseHead, selection: Selection) -> None:
        super().__init__()
        self.dense_head = head
        self.anchors = ExportedAnchors(head.anchor_generator)
        if len(set(self.anchors.num_anchors)) != 1:
            raise ConfigError(
                f"MODEL.DENSE.HEAD {type(head).__name__} has levels of different numbers of "
                "anchors, which can't be exported; give each as many"
            )
        self.decode = _decoder(head.box2box_transform)
        self.num_predictions = selection.num_predictions
        self.num_candidates = selection.num_candidates
        self.nms_threshold = float(selection.nms_thresh)

    def forward(self, maps: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            maps: (1, C, h, w) of each level.
            image_size: (2,) float, height and width.

        Returns:
            Of M predictions, most confident first: boxes (M, 4), xyxy; (M,) bool, which of them
            there are; features of both towers, (M, D) each; logits of their scores (M, K).
        """
        head = self.dense_head
        towers = head.head.towers(maps)
        levels = [
            [permute_to_N_HWA_K(x, dim)[0] for x, dim in zip(level, head.dims, strict=True)]
            for level in zip(*head.head.predict(towers), strict=True)
        ]
        predictions = [torch.cat(part) for part in zip(*levels, strict=True)]
        anchors = torch.cat(
            [self.anchors(number, *x.shape[-2:]) for number, x in enumerate(maps)]
        )
        scores, index = self._candidates(levels)
        boxes = clip_boxes(self.decode(predictions[1][index], anchors[index]), image_size)
        # Positions in the padding, or a box without extent: nothing to be found there.
        there = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & (scores > -torch.inf)
        boxes = boxes * there[:, None]  # one that is none overlaps nothing
        scores = torch.where(
            not_repeated(boxes, self.nms_threshold) & there, scores, -torch.inf
        )
        scores, chosen = scores.topk(self.num_predictions)
        index = index[chosen]
        positions = index.div(self.anchors.num_anchors[0], rounding_mode="floor")
        both = [
            torch.cat([tower[0].flatten(1).T for tower in of_levels])[positions]
            for of_levels in zip(*towers, strict=True)
        ]
        logits = head.score_logits([part[index] for part in predictions])
        return boxes[chosen], scores > -torch.inf, *both, logits

    def _candidates(self, levels: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """The most confident predictions of each level, best first: their scores, and their numbers
        counted over all levels. Where a level has fewer, rows of a score of -inf.

        Args:
            levels: of each level what is predicted, (R, K), (R, 4), ...
        """
        scores, numbers, start = [], [], 0
        for level in levels:
            best = self.dense_head.best_scores(level)
            padded = torch.cat([best, best.new_full((self.num_candidates,), -torch.inf)])
            values, rows = padded.topk(self.num_candidates)
            scores.append(values)
            numbers.append(torch.where(values > -torch.inf, rows + start, 0))
            start = start + best.shape[0]
        all_scores, all_numbers = torch.cat(scores), torch.cat(numbers)
        all_scores, order = all_scores.topk(len(all_scores))
        return all_scores, all_numbers[order]


def _decoder(transform: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A head's way from deltas (N, 4) and anchors (N, 4) to boxes (N, 4)."""
    if isinstance(transform, Box2BoxTransformLinear):
        by_size = bool(transform.normalize_by_size)
        return lambda deltas, anchors: apply_linear_deltas(deltas, anchors, by_size)
    if isinstance(transform, Box2BoxTransform):
        weights, clamp = tuple(transform.weights), float(transform.scale_clamp)
        return lambda deltas, anchors: apply_deltas(deltas, anchors, weights, clamp)
    raise ConfigError(
        f"MODEL.DENSE.HEAD: boxes by {type(transform).__name__} can't be exported; by "
        "Box2BoxTransform or Box2BoxTransformLinear they can"
    )


class ExportedBoxFeatures(nn.Module):
    """:class:`BoxFeatures` of one frame."""

    def __init__(self, part: BoxFeatures) -> None:
        super().__init__()
        self.pooler = ExportedPooler(part.pooler)
        self.project = part.project

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(1, C, h, w) of each level, (R, 4) -> (R, D)."""
        return self.project(self.pooler(maps, boxes).flatten(1)).relu()


class DenseFrameGraph(FrameGraph):
    """Selected predictions, and what they contribute to key frames."""

    def __init__(self, model: TemporalDense) -> None:
        super().__init__()
        self.backbone = exported_backbone(model.backbone)
        self.in_features = list(model.in_features)
        self.select = ExportedSelection(model.dense_head, model.selection)
        self.box_features = None
        if model.box_features is not None:
            self.box_features = ExportedBoxFeatures(model.box_features)
        part = model.prediction_aggregation
        self.own = ["boxes", "valid", "score_logits"]
        if part is not None:
            self.own += ["cls_features", "box_features"]
        self.aggregation = part if part is not None and part.needs_references else None
        self.encoded_axes: dict[str, int] = {}
        if self.aggregation is not None:
            self.encoded_axes = self._axes_of_encoded()
        self.output_names = [*self.own, *self.encoded_axes]

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`FrameGraph.forward`."""
        by_name = self.backbone(image)
        maps = [by_name[name] for name in self.in_features]
        boxes, valid, cls, box, logits = self.select(maps, image_size)
        if self.box_features is not None:
            cls = cls + self.box_features(maps, boxes)
        rows = valid.to(boxes.dtype)
        outputs = [boxes, rows, logits, cls, box][: len(self.own)]
        if self.aggregation is not None:
            # Where no frame has any prediction, what is gathered of the padding is 0.
            encoded = self.aggregation.encode_references(cls, box, logits)
            outputs += [tensor * rows[:, None] for tensor in encoded]
        return tuple(outputs)

    @torch.no_grad()
    def _axes_of_encoded(self) -> dict[str, int]:
        """For each tensor (..., M, E) that the aggregation encodes, a name, and the axis that
        counts frames in (..., T, M, E)."""
        assert self.aggregation is not None
        head, shapes = self.select.dense_head, self.backbone.output_shape()
        device = next(self.backbone.parameters()).device
        maps = [
            torch.zeros(1, shapes[name].channels, 8, 8, device=device) for name in self.in_features
        ]
        cls, box = (tower[0, :, 0, :1].T for tower in head.head.towers(maps)[0])
        encoded = self.aggregation.encode_references(cls, box, cls.new_zeros(1, head.num_classes))
        return {f"encoded_{number}": tensor.dim() - 2 for number, tensor in enumerate(encoded)}


class DenseKeyFrameGraph(KeyFrameGraph):
    """New scores of the key frame's selected predictions."""

    def __init__(self, model: TemporalDense) -> None:
        super().__init__()
        self.aggregation = model.prediction_aggregation

    def forward(
        self, own: Sequence[Tensor], counts: Tensor, references: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`KeyFrameGraph.forward`."""
        boxes, valid, logits, *towers = own
        if self.aggregation is not None:
            times, encoded = None, []
            if self.aggregation.needs_references:
                valid_of_references, *encoded = references
                # Rows that are padding count 0 times, unless there are no others.
                times = (counts[:, None] * valid_of_references).flatten()
                times = torch.where(times.sum() > 0, times, 1.0)
                encoded = [tensor.flatten(-3, -2) for tensor in encoded]
            logits = self.aggregation(*towers, logits, encoded, times)
        scores = torch.where(valid[:, None] > 0, logits.sigmoid(), 0.0)
        return boxes[:, None], scores


def export_one_stage(model: TemporalDense) -> ExportGraphs:
    """The two graphs of a one-stage detector.

    Raises:
        ConfigError: it has a part that has no form for other runtimes.
    """
    refuse_map_aggregation(model)
    frame = DenseFrameGraph(model)
    references: dict[str, int] = {}
    if model.head_needs_references:
        references = {"valid": 0, **frame.encoded_axes}
    return ExportGraphs(
        frame,
        DenseKeyFrameGraph(model),
        own=frame.own,
        references=references,
        score_threshold=float(model.score_thresh),
        nms_threshold=float(model.nms_thresh),
        max_detections=int(model.detections_per_image),
    )
