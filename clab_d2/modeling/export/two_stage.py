"""The two graphs of :class:`clab_d2.modeling.temporal_rcnn.TemporalRCNN`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clab_d2.errors import ConfigError
from clab_d2.modeling.export.backbone import exported_backbone
from clab_d2.modeling.export.base import (
    ExportGraphs,
    FrameGraph,
    KeyFrameGraph,
    refuse_map_aggregation,
)
from clab_d2.modeling.export.boxes import apply_deltas
from clab_d2.modeling.export.pooling import ExportedPooler, by_level
from clab_d2.modeling.export.proposals import ExportedRPN
from clab_d2.modeling.roi_heads.temporal_roi_heads import TemporalROIHeads

if TYPE_CHECKING:
    from clab_d2.modeling.temporal_rcnn import TemporalRCNN

_OWN = ("boxes", "valid", "roi_features")


class RCNNFrameGraph(FrameGraph):
    """Proposals, their RoI features, and what they and the maps contribute to key frames."""

    def __init__(self, model: TemporalRCNN) -> None:
        super().__init__()
        heads = model.roi_heads
        self.backbone = exported_backbone(model.backbone)
        self.rpn = ExportedRPN(model.proposal_generator)
        self.pooler = ExportedPooler(heads.pooler)
        self.in_features = list(heads.in_features)
        self.box_head = heads.box_head if heads.box_head.needs_references else None
        part = heads.roi_aggregation
        self.roi_aggregation = None if part is None else part.for_export()
        self.encoded_axes: dict[str, int] = {}
        self.row_names: list[str] = []
        if self.box_head is not None:
            self.encoded_axes = self._axes_of_encoded()
        if self.roi_aggregation is not None:
            kinds = self.roi_aggregation.reference_names
            self.row_names = [f"{kind}_{name}" for kind in kinds for name in self.in_features]
        self.output_names = [*_OWN, *self.encoded_axes, *self.row_names]

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`FrameGraph.forward`."""
        maps = self.backbone(image)
        boxes, valid = self.rpn([maps[name] for name in self.rpn.in_features], image_size)
        levels = [maps[name] for name in self.in_features]
        pooled = self.pooler(levels, boxes)
        outputs = [boxes, valid.to(boxes.dtype), pooled]
        if self.box_head is not None:
            outputs += [t for layer in self.box_head.encode_references(pooled) for t in layer]
        if self.roi_aggregation is not None:
            by_map = [self.roi_aggregation.of_reference(feature[0]) for feature in levels]
            outputs += [tensor for kind in zip(*by_map, strict=True) for tensor in kind]
        return tuple(outputs)

    @torch.no_grad()
    def _axes_of_encoded(self) -> dict[str, int]:
        """For each tensor (..., P, D) that the box head encodes, its name by layer and number, and
        the axis that counts frames in (..., T, P, D)."""
        assert self.box_head is not None
        size = self.pooler.pooler.output_size
        channels = self.backbone.output_shape()[self.in_features[0]].channels
        device = next(self.backbone.parameters()).device
        encoded = self.box_head.encode_references(torch.zeros(1, channels, *size, device=device))
        return {
            f"encoded_{index}_{number}": tensor.dim() - 2
            for index, layer in enumerate(encoded)
            for number, tensor in enumerate(layer)
        }


class RCNNKeyFrameGraph(KeyFrameGraph):
    """The second stage."""

    def __init__(self, heads: TemporalROIHeads, frame: RCNNFrameGraph) -> None:
        super().__init__()
        self.pooler = frame.pooler
        self.num_levels = len(frame.in_features)
        self.roi_aggregation = frame.roi_aggregation
        self.box_head = heads.box_head
        self.encoded_names = list(frame.encoded_axes)
        self.box_predictor = heads.box_predictor
        self.transform_weights = tuple(heads.box_predictor.box2box_transform.weights)
        self.scale_clamp = float(heads.box_predictor.box2box_transform.scale_clamp)

    def forward(
        self, own: Sequence[Tensor], counts: Tensor, references: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`KeyFrameGraph.forward`."""
        boxes, valid, pooled = own
        valid_of_references, *references = references if references else (None,)
        encoded = references[: len(self.encoded_names)]
        rows = references[len(self.encoded_names) :]
        if self.roi_aggregation is not None:
            aggregated = [
                self.roi_aggregation(pooled, counts, *rows[level :: self.num_levels])
                for level in range(self.num_levels)
            ]
            pooled = by_level(aggregated, self.pooler.levels(boxes))
        if encoded:
            # Rows that are padding count 0 times.
            times = (counts[:, None] * valid_of_references).flatten()
            features = self.box_head(pooled, self._by_layer(encoded), times)
        else:
            features = self.box_head(pooled)
        logits, deltas = self.box_predictor(features)
        sigmoid = self.box_predictor.use_sigmoid_ce
        scores = logits.sigmoid() if sigmoid else logits.softmax(dim=1)
        scores = torch.where(valid[:, None] > 0, scores[:, :-1], 0.0)
        moved = apply_deltas(deltas, boxes, self.transform_weights, self.scale_clamp)
        return moved.view(len(boxes), -1, 4), scores

    def _by_layer(self, encoded: Sequence[Tensor]) -> list[list[Tensor]]:
        """What the references' RoIs contribute to each FC layer: of (..., T, P, D) each, all RoIs
        along one dimension."""
        layers: dict[str, list[Tensor]] = {}
        for name, tensor in zip(self.encoded_names, encoded, strict=True):
            layers.setdefault(name.split("_")[1], []).append(tensor.flatten(-3, -2))
        return list(layers.values())


def export_two_stage(model: TemporalRCNN) -> ExportGraphs:
    """The two graphs of a two-stage detector.

    Raises:
        ConfigError: it has a part that has no form for other runtimes.
    """
    refuse_map_aggregation(model)
    heads = model.roi_heads
    if type(heads) is not TemporalROIHeads:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME {type(heads).__name__} can't be exported; TemporalROIHeads can"
        )
    frame = RCNNFrameGraph(model)
    key_frame = RCNNKeyFrameGraph(heads, frame)
    references: dict[str, int] = {}
    if heads.needs_references:
        references["valid"] = 0
        references |= frame.encoded_axes
        references |= dict.fromkeys(frame.row_names, 0)
    predictor = heads.box_predictor
    return ExportGraphs(
        frame,
        key_frame,
        own=_OWN,
        references=references,
        score_threshold=float(predictor.test_score_thresh),
        nms_threshold=float(predictor.test_nms_thresh),
        max_detections=int(predictor.test_topk_per_image),
    )
