"""Cascade R-CNN over frames: box heads one after the other, each with its own aggregation.

Source: "Cascade R-CNN: Delving into High Quality Object Detection" (CVPR 2018) by the rules of
Detectron2's ``CascadeROIHeads``; see docs/method.md, 'Cascade'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.reference_memory import FrameFeatures, References
from clab_d2.modeling.roi_heads.box_head import TemporalBoxHead
from clab_d2.modeling.roi_heads.temporal_roi_heads import TemporalROIHeads, in_single_precision


@ROI_HEADS_REGISTRY.register()
class TemporalCascadeROIHeads(TemporalROIHeads):
    """Stages of box head and predictor, of which each refines the boxes of the one before.

    Each stage pools the key frame's RoIs at its own boxes, with the aggregation on RoI features
    (one for all stages, as is the pooler), and has a box head of its own with its own aggregation
    after each FC layer. To every stage a reference frame contributes its RPN proposals: what a
    stage makes of them depends on the reference alone and is computed once a frame.

    Weights have the names of Detectron2's ``CascadeROIHeads``: ``box_head.0.fc1.weight``, and so
    on. Without aggregation it is that head.
    """

    @configurable
    def __init__(
        self,
        *,
        box_heads: Sequence[TemporalBoxHead],
        box_predictors: Sequence[FastRCNNOutputLayers],
        proposal_matchers: Sequence[Matcher],
        **kwargs: Any,
    ) -> None:
        """
        Args:
            box_heads: one for each stage.
            box_predictors: likewise; their boxes are the same for all classes.
            proposal_matchers: likewise; assign boxes to objects in training.
            kwargs: ``in_features``, ``pooler``, ``roi_aggregation`` of :class:`TemporalROIHeads`
                and the arguments of :class:`ROIHeads` but ``proposal_matcher``.
        """
        if not len(box_heads) == len(box_predictors) == len(proposal_matchers) > 0:
            raise ValueError(
                f"{len(box_heads)} box heads, {len(box_predictors)} box predictors and "
                f"{len(proposal_matchers)} matchers do not make stages"
            )
        super().__init__(
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            proposal_matcher=proposal_matchers[0],
            **kwargs,
        )
        self.proposal_matchers = list(proposal_matchers)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        _check_stages(cfg)
        arguments = super().from_config(cfg, input_shape)
        del arguments["proposal_matcher"]
        return {
            "box_heads": arguments.pop("box_head"),
            "box_predictors": arguments.pop("box_predictor"),
            "proposal_matchers": [
                Matcher([iou], [0, 1], allow_low_quality_matches=False)
                for iou in cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
            ],
            **arguments,
        }

    @classmethod
    def build_box_head(cls, cfg: CfgNode, shape: ShapeSpec) -> nn.ModuleList:
        """One for each stage; see :meth:`TemporalROIHeads.build_box_head`."""
        stages = len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS)
        build = super().build_box_head
        return nn.ModuleList(build(cfg, shape) for _ in range(stages))

    @classmethod
    def build_box_predictor(cls, cfg: CfgNode, box_head: nn.ModuleList) -> nn.ModuleList:
        """One for each stage; see :meth:`TemporalROIHeads.build_box_predictor`."""
        return nn.ModuleList(
            FastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights)
            )
            for head, weights in zip(
                box_head, cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS, strict=True
            )
        )

    @property
    def box_heads(self) -> list[TemporalBoxHead]:
        return list(self.box_head)

    # ---------------------------------------------------------------- references

    def encode_references(self, frames: Sequence[FrameFeatures]) -> list[Any]:
        """By frame, then by stage: see :meth:`TemporalROIHeads.encode_references`."""
        if not any(head.needs_references for head in self.box_heads):
            return [[] for _ in frames]
        pooled, lengths = self.pool_proposals(frames)
        pooled = self._share_gradient(pooled)
        by_stage = [self.encode_by_frame(head, pooled, lengths) for head in self.box_heads]
        return [list(stages) for stages in zip(*by_stage, strict=True)]

    def _share_gradient(self, pooled: Tensor) -> Tensor:
        """RoI features whose gradient counts one part in as many as there are stages.

        Stages' losses are summed; what the heads share is to learn at the pace of a single head.
        """
        if pooled.requires_grad:
            share = 1.0 / len(self.box_heads)
            pooled.register_hook(lambda gradient: gradient * share)
        return pooled

    # ---------------------------------------------------------------- one key frame

    def predict_stage(
        self, stage: int, frame: FrameFeatures, proposals: Instances, references: References
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, classes + 1) and box deltas (R, 4) of one key frame by one stage.

        Args:
            stage: from 0.
            frame: the key frame.
            proposals: R RoIs of it, from the stage before.
            references: frames to aggregate over, encoded.
        """
        pooled = self._share_gradient(
            self.aggregated_pool(frame, proposals.proposal_boxes, references)
        )
        head = self.box_head[stage]
        encoded = [f.encoded[stage] for f in references.frames] if head.needs_references else []
        features = self.box_features(("box head", stage), head, pooled, encoded, references)
        return self.box_predictor[stage](features)

    def forward(
        self,
        frames: Sequence[FrameFeatures],
        proposals: Sequence[Instances],
        references: Sequence[References],
        targets: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See :meth:`TemporalROIHeads.forward`; scores are means over the stages, boxes are those
        of the last, and the losses of stage k have ``_stage<k>`` at the end of their names."""
        if self.training:
            assert targets is not None, "ground truth is needed in training"
            proposals = self.label_and_sample_proposals(list(proposals), list(targets))
        proposals = list(proposals)
        losses: dict[str, Tensor] = {}
        scores: list[Sequence[Tensor]] = []
        boxes: Sequence[Tensor] = ()
        for stage, predictor in enumerate(self.box_predictor):
            if stage:
                proposals = [
                    self._refined(own, new) for own, new in zip(proposals, boxes, strict=True)
                ]
                if self.training:
                    self._label(stage, proposals, targets)
            outputs = in_single_precision(
                [
                    self.predict_stage(stage, *clip)
                    for clip in zip(frames, proposals, references, strict=True)
                ]
            )
            boxes = predictor.predict_boxes(outputs, proposals)
            if self.training:
                with get_event_storage().name_scope(f"stage{stage}"):
                    of_stage = predictor.losses(outputs, proposals)
                losses |= {f"{name}_stage{stage}": loss for name, loss in of_stage.items()}
            else:
                scores.append(predictor.predict_probs(outputs, proposals))
        if self.training:
            return [], losses
        means = [torch.stack(of_frame).mean(dim=0) for of_frame in zip(*scores, strict=True)]
        instances, _ = fast_rcnn_inference(
            boxes,
            means,
            [own.image_size for own in proposals],
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return instances, {}

    def _refined(self, proposals: Instances, boxes: Tensor) -> Instances:
        """A stage's boxes as the next one's RoIs; without a gradient, as the RPN's."""
        refined = Boxes(boxes.detach())
        refined.clip(proposals.image_size)
        if self.training:  # at test each keeps its place, since scores are averaged
            refined = refined[refined.nonempty()]
        return Instances(proposals.image_size, proposal_boxes=refined)

    @torch.no_grad()
    def _label(
        self, stage: int, proposals: Sequence[Instances], targets: Sequence[Instances]
    ) -> None:
        """Give RoIs the class (the last number for background) and box of the object that they
        overlap most, if by this stage's IoU; in place. All are kept, none is sampled."""
        counts = {"fg": 0, "bg": 0}
        for rois, truth in zip(proposals, targets, strict=True):
            overlaps = pairwise_iou(truth.gt_boxes, rois.proposal_boxes)
            objects, is_object = self.proposal_matchers[stage](overlaps)
            if len(truth):
                classes = truth.gt_classes[objects].masked_fill(is_object == 0, self.num_classes)
                rois.gt_boxes = truth.gt_boxes[objects]
            else:
                classes = torch.full_like(objects, self.num_classes)
                rois.gt_boxes = Boxes(torch.zeros_like(rois.proposal_boxes.tensor))
            rois.gt_classes = classes
            counts["fg"] += int((classes < self.num_classes).sum())
            counts["bg"] += int((classes == self.num_classes).sum())
        for name, count in counts.items():
            get_event_storage().put_scalar(
                f"stage{stage}/roi_head/num_{name}_samples", count / len(proposals)
            )


def _check_stages(cfg: CfgNode) -> None:
    """One line for what in a config makes no cascade."""
    cascade, head = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_BOX_HEAD
    if not head.CLS_AGNOSTIC_BBOX_REG:
        raise ConfigError(
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG is False; a cascade hands one box of each "
            "RoI on to its next stage: set it True"
        )
    if not len(cascade.IOUS) == len(cascade.BBOX_REG_WEIGHTS) > 0:
        raise ConfigError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS has {len(cascade.IOUS)} entries and "
            f"BBOX_REG_WEIGHTS {len(cascade.BBOX_REG_WEIGHTS)}; give one of each for every stage"
        )
    for weights in cascade.BBOX_REG_WEIGHTS:
        if len(weights) != 4 or not all(isinstance(weight, (int, float)) for weight in weights):
            raise ConfigError(
                f"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS holds {weights!r}; give four numbers "
                "for every stage, as ((10.0, 10.0, 5.0, 5.0), ...)"
            )
    if list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS) != [cascade.IOUS[0]]:
        raise ConfigError(
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS is {list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)}, but "
            f"the first stage's IoU in MODEL.ROI_BOX_CASCADE_HEAD.IOUS {cascade.IOUS[0]}; "
            "make them the same"
        )
