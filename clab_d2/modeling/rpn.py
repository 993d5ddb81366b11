"""RPN that labels anchors as MMDetection, and so the release, does."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor


def match_anchors(
    quality: Tensor, matcher: Matcher, min_low_quality_iou: float
) -> tuple[Tensor, Tensor]:
    """Match anchors with objects, low-quality matches kept.

    After the matcher's thresholds, every anchor whose IoU with an object equals the object's best
    becomes a positive of that object, provided the best reaches ``min_low_quality_iou``
    (MMDetection's rule; Detectron2's keeps the anchor's own best object as its target and has no
    lower bound).

    Args:
        quality: (G, A) IoU of G objects with A anchors.
        matcher: labels anchors by their best IoU, without low-quality matches.
        min_low_quality_iou: the bound.

    Returns:
        (A,) index of the matched object, (A,) label: 1 object, 0 background, -1 ignored.
    """
    matches, labels = matcher(quality)
    if quality.numel() == 0:
        return matches, labels
    best = quality.max(dim=1).values
    for index in (best >= max(min_low_quality_iou, 1e-12)).nonzero().flatten().tolist():
        ties = quality[index] == best[index]
        matches[ties] = index
        labels[ties] = 1
    return matches, labels


@PROPOSAL_GENERATOR_REGISTRY.register()
class MMDetectionRPN(RPN):
    """Detectron2's RPN with MMDetection's anchor labelling."""

    @configurable
    def __init__(self, *, min_low_quality_iou: float = 0.0, **kwargs: object) -> None:
        """
        Args:
            min_low_quality_iou: see :func:`match_anchors`.
            kwargs: Detectron2's :class:`RPN` arguments. With ``anchor_boundary_thresh`` >= 0,
                anchors that cross the image border take no part in matching and loss.
        """
        super().__init__(**kwargs)
        self.min_low_quality_iou = min_low_quality_iou

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        arguments = super().from_config(cfg, input_shape)
        arguments["anchor_matcher"] = Matcher(
            cfg.MODEL.RPN.IOU_THRESHOLDS, cfg.MODEL.RPN.IOU_LABELS, allow_low_quality_matches=False
        )
        arguments["min_low_quality_iou"] = cfg.MODEL.RPN.MIN_LOW_QUALITY_IOU
        return arguments

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`RPN.label_and_sample_anchors`, except that border-crossing anchors are left
        out before matching, not after, and for :func:`match_anchors`."""
        all_anchors = Boxes.cat(anchors)
        gt_labels, matched_boxes = [], []
        for targets in gt_instances:
            if self.anchor_boundary_thresh >= 0:
                inside = all_anchors.inside_box(targets.image_size, self.anchor_boundary_thresh)
            else:
                inside = torch.ones(len(all_anchors), dtype=torch.bool, device=all_anchors.device)
            matches, inside_labels = match_anchors(
                pairwise_iou(targets.gt_boxes, all_anchors[inside]),
                self.anchor_matcher,
                self.min_low_quality_iou,
            )
            labels = inside_labels.new_full((len(all_anchors),), -1)
            labels[inside] = inside_labels
            boxes = torch.zeros_like(all_anchors.tensor)
            if len(targets):
                boxes[inside] = targets.gt_boxes.tensor[matches]
            gt_labels.append(self._subsample_labels(labels))
            matched_boxes.append(boxes)
        return gt_labels, matched_boxes

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As :meth:`RPN.forward`, in single precision under autocast, too: among thousands of
        anchors, scores of three digits would tie, and with them the choice of proposals."""
        device = next(iter(features.values())).device.type
        precise = {
            name: feature.to(torch.promote_types(feature.dtype, torch.float32))
            for name, feature in features.items()
        }
        with torch.autocast(device, enabled=False):
            return super().forward(images, precise, gt_instances)
