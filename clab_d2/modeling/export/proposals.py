"""The RPN's proposals in operators that graphs have: a fixed number of rows, padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn
from torchvision.ops import nms

from clab_d2.errors import ConfigError


class ExportedRPN(nn.Module):
    """What :func:`detectron2.modeling.proposal_generator.proposal_utils.find_top_rpn_proposals`
    gives at test for one image, in the same order."""

    def __init__(self, rpn: RPN) -> None:
        """
        Args:
            rpn: the detector's, with Detectron2's own anchors.
        """
        super().__init__()
        if not isinstance(rpn, RPN) or not isinstance(
            rpn.anchor_generator, DefaultAnchorGenerator
        ):
            raise ConfigError(
                f"MODEL.PROPOSAL_GENERATOR.NAME {type(rpn).__name__} can't be exported; an RPN "
                "with MODEL.ANCHOR_GENERATOR.NAME DefaultAnchorGenerator can"
            )
        self.head = rpn.rpn_head
        self.in_features = list(rpn.in_features)
        for level, anchors in enumerate(rpn.anchor_generator.cell_anchors):
            self.register_buffer(f"cell_anchors_{level}", anchors.detach().clone())
        self.strides = list(rpn.anchor_generator.strides)
        self.offset = rpn.anchor_generator.offset
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
        anchors = self._anchors(level, height, width)
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
        # They are in order: whole numbers that fall are their scores, of which no two are alike.
        ranks = torch.arange(pad, 0, -1, dtype=boxes.dtype, device=boxes.device)
        kept = nms(boxes, ranks, self.nms_threshold)
        chosen = torch.zeros_like(ranks).index_fill(0, kept, 1.0)
        return boxes, torch.where((chosen > 0) & there, scores, -torch.inf)

    def _anchors(self, level: int, height: int, width: int) -> Tensor:
        """(h * w * A, 4), as :class:`DefaultAnchorGenerator` numbers them."""
        cell = getattr(self, f"cell_anchors_{level}")
        stride = self.strides[level]
        rows = (torch.arange(height, device=cell.device) + self.offset) * stride
        columns = (torch.arange(width, device=cell.device) + self.offset) * stride
        x = columns[None, :].expand(height, width)
        y = rows[:, None].expand(height, width)
        shifts = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4).to(cell.dtype)
        return (shifts + cell).reshape(-1, 4)


def apply_deltas(
    deltas: Tensor, boxes: Tensor, weights: Sequence[float], scale_clamp: float
) -> Tensor:
    """Boxes moved and scaled: Detectron2's ``Box2BoxTransform.apply_deltas``, which is compiled by
    torch.jit and so can't be traced.

    Args:
        deltas: (N, 4 * K).
        boxes: (N, 4), xyxy.
        weights: of dx, dy, dw, dh.
        scale_clamp: greatest logarithm of a change of size.

    Returns:
        (N, 4 * K).
    """
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = boxes[:, None, :2] + 0.5 * size
    by_class = deltas.view(len(deltas), -1, 4)
    centre = by_class[..., :2] / deltas.new_tensor(weights[:2]) * size + centre
    scale = (by_class[..., 2:] / deltas.new_tensor(weights[2:])).clamp(max=scale_clamp)
    half = 0.5 * (scale.exp() * size)
    return torch.cat([centre - half, centre + half], dim=2).flatten(1)


def clip_boxes(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Boxes (..., 4) within an image of (height, width)."""
    limit = image_size.flip(0).repeat(2)
    return torch.minimum(boxes.clamp(min=0), limit)
