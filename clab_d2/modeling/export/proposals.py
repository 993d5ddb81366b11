"""The RPN's proposals in operators that graphs have: a fixed number of rows, padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn

from clab_d2.errors import ConfigError
from clab_d2.modeling.export.anchors import ExportedAnchors
from clab_d2.modeling.export.boxes import apply_deltas, clip_boxes, not_repeated


class ExportedRPN(nn.Module):
    """What :func:`detectron2.modeling.proposal_generator.proposal_utils.find_top_rpn_proposals`
    gives at test for one image, in the same order."""

    def __init__(self, rpn: RPN) -> None:
        """
        Args:
            rpn: the detector's, with Detectron2's own anchors.
        """
        super().__init__()
        if not isinstance(rpn, RPN):
            raise ConfigError(
                f"MODEL.PROPOSAL_GENERATOR.NAME {type(rpn).__name__} can't be exported; an RPN can"
            )
        self.head = rpn.rpn_head
        self.in_features = list(rpn.in_features)
        self.anchors = ExportedAnchors(rpn.anchor_generator)
        self.weights = tuple(rpn.box2box_transform.weights)
        self.scale_clamp = float(rpn.box2box_transform.scale_clamp)
        self.before_nms = rpn.pre_nms_topk[False]
        self.num_proposals = rpn.post_nms_topk[False]
        self.nms_threshold = float(rpn.nms_thresh)
        self.min_size = rpn.min_box_size

    def forward(
        self, features: Sequence[Tensor], image_size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: maps (1, C, h, w) of ``in_features``.
            image_size: (2,) float, height and width.

        Returns:
            (P, 4) boxes, xyxy, best first, and (P,) bool, which of them there are: the rest is
            zeros.
        """
        logits, deltas = self.head(list(features))
        best = [
            self._of_level(level, of_level[0], of_deltas[0], image_size)
            for level, (of_level, of_deltas) in enumerate(zip(logits, deltas, strict=True))
        ]
        boxes = torch.cat([of_level for of_level, _ in best])
        scores = torch.cat([of_scores for _, of_scores in best])
        missing = self.num_proposals - len(scores)
        if missing > 0:
            boxes = torch.cat([boxes, boxes.new_zeros(missing, 4)])
            scores = torch.cat([scores, scores.new_full((missing,), -torch.inf)])
        scores, order = scores.topk(self.num_proposals)
        valid = scores > -torch.inf
        return boxes[order] * valid[:, None], valid

    def _of_level(
        self, level: int, logits: Tensor, deltas: Tensor, image_size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A level's best boxes (K, 4) and their logits (K,), -inf for those that are none.

        Args:
            level: its number.
            logits: (A, h, w).
            deltas: (A * 4, h, w).
            image_size: (2,).
        """
        num_anchors, height, width = logits.shape
        anchors = self.anchors(level, height, width)
        scores = logits.permute(1, 2, 0).flatten()
        deltas = deltas.view(num_anchors, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
        # A map may have fewer positions than are taken: none of these rows counts.
        pad = self.before_nms
        scores, order = torch.cat([scores, scores.new_full((pad,), -torch.inf)]).topk(pad)
        anchors = torch.cat([anchors, anchors.new_zeros(pad, 4)])[order]
        deltas = torch.cat([deltas, deltas.new_zeros(pad, 4)])[order]
        boxes = apply_deltas(deltas, anchors, self.weights, self.scale_clamp)
        boxes = clip_boxes(boxes, image_size)
        sizes = boxes[:, 2:] - boxes[:, :2]
        there = (sizes > self.min_size).all(dim=1) & (scores > -torch.inf)
        boxes = boxes * there[:, None]  # one that is none overlaps nothing
        chosen = not_repeated(boxes, self.nms_threshold)
        return boxes, torch.where(chosen & there, scores, -torch.inf)
