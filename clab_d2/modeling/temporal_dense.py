"""TemporalDense: a one-stage detector that aggregates over the frames of a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

from clab_d2.modeling.aggregation.base import PredictionAggregation, build_prediction_aggregation
from clab_d2.modeling.dense_heads.base import DENSE_HEAD_REGISTRY, DenseHead, DensePredictions
from clab_d2.modeling.dense_heads.box_features import BoxFeatures
from clab_d2.modeling.dense_heads.selection import Selection
from clab_d2.modeling.frame_groups import joined_maps, same_size
from clab_d2.modeling.part_results import check_sequence, check_tensor
from clab_d2.modeling.reference_memory import FrameFeatures, References
from clab_d2.modeling.temporal_detector import TemporalDetector

if TYPE_CHECKING:
    from clab_d2.modeling.export.base import ExportGraphs


@META_ARCH_REGISTRY.register()
class TemporalDense(TemporalDetector):
    """RetinaNet or FCOS, whose most confident predictions look at those of reference frames.

    A frame goes through the head once, as key frame and as reference; a few of its predictions are
    selected, and what both towers of the head hold at their positions is all that is kept of it.
    Their boxes stay; their classes are scored anew by the aggregation on predictions. Without one
    this is the single-frame detector.
    """

    feature_keys = ("RETINANET",)

    @configurable
    def __init__(
        self,
        *,
        dense_head: DenseHead,
        selection: Selection,
        prediction_aggregation: PredictionAggregation | None,
        box_features: BoxFeatures | None = None,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_image: int = 100,
        rescoring_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            dense_head: from maps to predictions.
            selection: which of them go on.
            prediction_aggregation: gives those new scores; None leaves them as they are.
            box_features: what it gets of the predicted boxes beside the towers' features; None for
                these alone.
            score_thresh, nms_thresh, detections_per_image: of the detections given.
            rescoring_weight: of the new scores' loss, beside the head's losses.
            kwargs: those of :class:`TemporalDetector`.
        """
        super().__init__(**kwargs)
        self.dense_head = dense_head
        self.selection = selection
        self.prediction_aggregation = prediction_aggregation
        self.box_features = box_features
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_image = detections_per_image
        self.rescoring_weight = rescoring_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg, cls.features_of(cfg))
        shapes = arguments["backbone"].output_shape()
        dense, retina = cfg.MODEL.DENSE, cfg.MODEL.RETINANET
        name, levels = dense.HEAD, {n: shapes[n] for n in retina.IN_FEATURES}
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        aggregation = build_prediction_aggregation(cfg, dense.DIM, num_classes)
        box_features = None
        if aggregation is not None:
            box_features = BoxFeatures.from_config(cfg, list(levels.values()))
        return {
            **arguments,
            "dense_head": DENSE_HEAD_REGISTRY.build(name, DenseHead, cfg, levels),
            "selection": Selection(
                num_predictions=dense.SELECT.NUM,
                num_candidates=dense.SELECT.NUM_CANDIDATES,
                nms_thresh=dense.SELECT.NMS_THRESH,
                num_per_object=dense.SELECT.NUM_PER_OBJECT,
            ),
            "prediction_aggregation": aggregation,
            "box_features": box_features,
            "score_thresh": retina.SCORE_THRESH_TEST,
            "nms_thresh": retina.NMS_THRESH_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "rescoring_weight": dense.RESCORING_WEIGHT,
        }

    @property
    def head_needs_references(self) -> bool:
        part = self.prediction_aggregation
        return part is not None and part.needs_references

    @property
    def kept_features(self) -> Sequence[str]:
        # The selected predictions hold all that later steps take of a frame's own maps.
        return () if self.map_aggregation is None else super().kept_features

    # ---------------------------------------------------------------- a frame by itself

    def _predict(self, maps: Mapping[str, Tensor]) -> DensePredictions:
        """What the head gives for the maps of frames of one size."""
        return self.dense_head(list(maps.values()))

    def _selected(
        self,
        frames: Sequence[FrameFeatures],
        maps: Mapping[str, Tensor],
        output: DensePredictions,
        targets: Sequence[Instances] | None = None,
    ) -> list[Instances]:
        """The selected predictions of frames of one size, with all that the aggregation takes."""
        sizes = [frame.image_size for frame in frames]
        selected = self.selection(self.dense_head, output, sizes, targets)
        if self.box_features is not None:
            boxes = [own.pred_boxes for own in selected]
            for own, more in zip(
                selected, self.box_features(list(maps.values()), boxes), strict=True
            ):
                own.cls_features = own.cls_features + more
        return selected

    def _select(self, frames: Sequence[FrameFeatures]) -> None:
        """Put into frames their selected predictions."""
        for group in same_size(frames):
            maps = joined_maps(group, self.in_features)
            selected = self._selected(group, maps, self._predict(maps))
            for frame, own in zip(group, selected, strict=True):
                frame.proposals = own

    def reference_parts(self, frames: Sequence[FrameFeatures]) -> None:
        """Selected predictions, and what the aggregation encodes of them."""
        if not self.head_needs_references and self.map_aggregation is not None:
            return  # the maps are all that such a key frame takes of its references
        self._select(frames)
        if not self.head_needs_references:
            return
        part, lengths = self.prediction_aggregation, [len(frame.proposals) for frame in frames]
        encoded = part.encode_references(
            torch.cat([frame.proposals.cls_features for frame in frames]),
            torch.cat([frame.proposals.box_features for frame in frames]),
            torch.cat([frame.proposals.score_logits for frame in frames]),
        )
        _check_encoded(part, encoded, sum(lengths))
        # Each a copy of its own: a slice would keep those of all the frames.
        by_tensor = [
            [x.clone() for x in tensor.split(lengths, dim=-2)] if len(frames) > 1 else [tensor]
            for tensor in encoded
        ]
        for frame, parts in zip(frames, zip(*by_tensor, strict=True), strict=True):
            frame.encoded = list(parts)

    # ---------------------------------------------------------------- key frames

    def rescored(self, selected: Instances, references: References) -> Tensor:
        """Logits (R, K) of the selected predictions' scores, after a look at the references."""
        part = self.prediction_aggregation
        if part is None:
            return selected.score_logits
        joined: list[Tensor] = []
        counts = None
        if part.needs_references:
            encoded = [frame.encoded for frame in references.frames]
            joined = [
                references.cat(("prediction", number), parts, dim=-2)
                for number, parts in enumerate(zip(*encoded, strict=True))
            ]
            counts = references.counts_of_proposals(selected.score_logits)
        logits = part(
            selected.cls_features, selected.box_features, selected.score_logits, joined, counts
        )
        shape = selected.score_logits.shape
        check_tensor(part, "forward", logits, shape, "(R, K), as score_logits")
        return logits

    def detection_losses(
        self,
        keys: Sequence[FrameFeatures],
        references: Sequence[References],
        targets: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """Losses of the head on the key frames, and of the new scores."""
        losses: dict[str, Tensor] = {}
        of_key = {
            id(key): pair for key, *pair in zip(keys, references, targets, strict=True)
        }
        for group in same_size(keys):
            maps = joined_maps(group, self.in_features)
            output = self._predict(maps)
            others, truth = zip(*(of_key[id(key)] for key in group), strict=True)
            own = self.dense_head.detection_losses(output, truth)
            if self.prediction_aggregation is not None:
                selected = self._selected(group, maps, output, truth)
                own["loss_rescoring"] = self.rescoring_loss(selected, others, truth)
            for name, value in own.items():
                # Each group's loss is a mean over its clips.
                losses[name] = losses.get(name, 0) + value * (len(group) / len(keys))
        return losses

    def rescoring_loss(
        self,
        selected: Sequence[Instances],
        references: Sequence[References],
        targets: Sequence[Instances],
    ) -> Tensor:
        """Binary cross-entropy of the new scores, by the class of the object that a box fits; the
        sum over classes, and the mean over the selected predictions."""
        logits = [
            self.rescored(own, others) for own, others in zip(selected, references, strict=True)
        ]
        wanted = [_classes_by_overlap(o, t) for o, t in zip(selected, targets, strict=True)]
        all_logits, all_wanted = torch.cat(logits), torch.cat(wanted)
        loss = F.binary_cross_entropy_with_logits(all_logits, all_wanted, reduction="sum")
        return self.rescoring_weight * loss / max(len(all_wanted), 1)

    def detect(self, key: FrameFeatures, references: References) -> Instances:
        """See :meth:`TemporalDetector.detect`."""
        if key.proposals is None:
            self._select([key])
        selected = key.proposals
        scores = self.rescored(selected, references).sigmoid()
        # Detectron2's function leaves out a last class, the background, which there is none of.
        instances, _ = fast_rcnn_inference_single_image(
            selected.pred_boxes.tensor, F.pad(scores, (0, 1)), key.image_size,
            self.score_thresh, self.nms_thresh, self.detections_per_image,
        )  # fmt: skip
        return instances

    def export_graphs(self) -> ExportGraphs:
        """See :meth:`TemporalDetector.export_graphs`."""
        from clab_d2.modeling.export.one_stage import export_one_stage

        return export_one_stage(self)


def _classes_by_overlap(selected: Instances, target: Instances) -> Tensor:
    """What the scores of selected boxes should be, (R, K): 1 for the class of the object that a box
    overlaps most, if with an IoU of 0.5 at least."""
    wanted = torch.zeros_like(selected.score_logits)
    if len(target) and len(selected):
        best = pairwise_iou(selected.pred_boxes, target.gt_boxes).max(dim=1)
        fits = (best.values >= 0.5).nonzero().flatten()
        wanted[fits, target.gt_classes[best.indices[fits]]] = 1
    return wanted


def _check_encoded(part: PredictionAggregation, encoded: object, number: int) -> None:
    """Check what :meth:`PredictionAggregation.encode_references` gave for so many predictions."""
    what = "one or more (..., M, E), M the reference predictions"
    check_sequence(part, "encode_references", encoded, what)
    for tensor in encoded:  # type: ignore[attr-defined]
        dimensions = max(tensor.dim() if isinstance(tensor, Tensor) else 0, 2)
        shape = (*(None,) * (dimensions - 2), number, None)
        check_tensor(part, "encode_references", tensor, shape, what)
