"""Objects contrasted by their class, gated by IoU, after FSCE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from pytorch_metric_learning.losses import SupConLoss
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor

from clab_d2.errors import ConfigError
from clab_d2.modeling.contrastive.base import CONTRASTIVE_LOSS_REGISTRY, ContrastiveFrame
from clab_d2.modeling.contrastive.embedding import RoIEmbedding
from clab_d2.modeling.contrastive.examples import Examples
from clab_d2.modeling.contrastive.pair_contrast import Pairs, checked_temperature
from clab_d2.modeling.contrastive.roi_contrast import Candidates, RoIContrast

# Name -> how much a RoI counts as an anchor by its IoU, where that passes the gate: FSCE's g(u).
IOU_WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "linear": lambda iou: iou,
    "exp": torch.expm1,
}


class BoxJitter:
    """Random copies of boxes, in the place of a two-stage detector's proposals."""

    def __init__(self, copies: int = 3, amount: float = 0.15) -> None:
        """
        Args:
            copies: of each box.
            amount: a copy's centre moves by up to this share of the box's sides, and its sides grow
                or shrink by up to a factor of exp(amount).
        """
        if copies < 0:
            raise ConfigError(f"MODEL.CONTRASTIVE.JITTER.COPIES is {copies}; give 0 or more")
        if not 0 <= amount < 0.5:
            raise ConfigError(
                f"MODEL.CONTRASTIVE.JITTER.AMOUNT is {amount}; give a share from 0 to below 0.5 of "
                "a box's sides, so that a copy holds its object's centre"
            )
        self.copies = copies
        self.amount = amount

    def __call__(self, boxes: Boxes, image_size: tuple[int, int]) -> Boxes:
        """
        Args:
            boxes: N boxes.
            image_size: (height, width), which copies are clipped to.

        Returns:
            copies * N boxes: a copy of each, then another of each, ...
        """
        sides = boxes.tensor[:, 2:] - boxes.tensor[:, :2]
        noise = boxes.tensor.new_empty(self.copies, len(boxes), 4).uniform_(-1, 1) * self.amount
        centres = boxes.get_centers() + noise[..., :2] * sides
        halves = sides * noise[..., 2:].exp() / 2
        jittered = Boxes(torch.cat([centres - halves, centres + halves], dim=-1).flatten(0, 1))
        jittered.clip(image_size)
        return jittered


@CONTRASTIVE_LOSS_REGISTRY.register()
class ClassContrast(RoIContrast):
    """Objects of a class are alike, those of other classes are not, in all clips on all GPUs.

    This is the contrastive proposal encoding loss of "FSCE: Few-Shot Object Detection via
    Contrastive Proposal Encoding" (CVPR 2021) over N RoIs with embeddings z, classes y and IoUs u::

        L = 1/N sum_i f(u_i) L_i,    f(u) = I{u >= gate} g(u)
        L_i = -1/(N_yi - 1) sum_{j != i, y_j = y_i} log( exp(s_ij) / sum_{k != i} exp(s_ik) )

    with s the cosine over the temperature, and N_y the number of RoIs of class y. A RoI below the
    gate is no anchor, but one of the others. The paper's RoIs are a two-stage detector's proposals;
    here they are the objects' boxes and jittered copies, so that any detector can use the loss, and
    u is the IoU with the box that a copy is of. Where all RoIs are of one class the loss is 0.

    Remembered RoIs count as the batch's do, as j and k; i is of the batch.
    """

    @configurable
    def __init__(
        self,
        embedding: RoIEmbedding,
        jitter: Callable[[Boxes, tuple[int, int]], Boxes],
        temperature: float = 0.1,
        iou_gate: float = 0.7,
        iou_weighting: str = "none",
        memory_size: int = 0,
    ) -> None:
        """
        Args:
            embedding: conv, RoIAlign and projection.
            jitter: gives copies of boxes in an image, as :class:`BoxJitter`.
            temperature: what cosines are divided by (the paper's is 0.2).
            iou_gate: least IoU of an anchor (the paper's best is 0.7).
            iou_weighting: g, one of ``IOU_WEIGHTINGS``: "none" for 1 (the paper's best), "linear"
                for u, "exp" for exp(u) - 1.
            memory_size: see :class:`~clab_d2.modeling.contrastive.pair_contrast.PairContrast`.
        """
        temperature = checked_temperature(temperature)
        loss = SupConLoss(temperature=temperature, reducer=DoNothingReducer())
        super().__init__(embedding, loss, memory_size)
        if not 0 <= iou_gate <= 1:
            raise ConfigError(
                f"MODEL.CONTRASTIVE.IOU_GATE is {iou_gate}; give an IoU from 0 to 1"
            )
        if iou_weighting not in IOU_WEIGHTINGS:
            raise ConfigError(
                f"MODEL.CONTRASTIVE.IOU_WEIGHTING {iou_weighting!r} is unknown; choose one of "
                f"{tuple(IOU_WEIGHTINGS)}"
            )
        self.jitter = jitter
        self.iou_gate = iou_gate
        self.iou_weighting = iou_weighting

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        branch = cfg.MODEL.CONTRASTIVE
        return {
            "embedding": RoIEmbedding(cfg, input_shape),
            "jitter": BoxJitter(branch.JITTER.COPIES, branch.JITTER.AMOUNT),
            "iou_gate": branch.IOU_GATE,
            "iou_weighting": branch.IOU_WEIGHTING,
            **cls.common_arguments(cfg),
        }

    def candidates(self, frame: ContrastiveFrame, truth: Instances) -> Candidates:
        objects = truth.gt_boxes
        boxes = Boxes.cat([objects, self.jitter(objects, frame.image_size)])
        index = torch.arange(len(boxes), device=objects.device) % max(len(objects), 1)
        iou = matched_pairwise_iou(boxes, objects[index])
        return Candidates(boxes, truth.gt_classes[index], self.anchor_weights(iou))

    def anchor_weights(self, iou: Tensor) -> Tensor:
        """f(u): how much RoIs of these IoUs count as anchors."""
        return (iou >= self.iou_gate) * IOU_WEIGHTINGS[self.iou_weighting](iou)

    def pairs(self, anchors: Examples, others: Examples, remembered: bool) -> tuple[Tensor, Tensor]:
        same_class = anchors.labels[:, None] == others.labels
        return same_class, ~same_class

    def loss_of_pairs(self, batch: Examples, references: Tensor, pairs: Pairs) -> Tensor:
        losses = super().loss_of_pairs(batch, references, pairs)["loss"]["losses"]  # (N,), or 0
        mean = (batch.weights * losses).sum() / max(len(batch.weights), 1)
        return mean + batch.embeddings.sum() * 0.0
