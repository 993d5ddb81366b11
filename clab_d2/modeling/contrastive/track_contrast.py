"""Objects contrasted by their track, after QDTrack."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import GenericPairLoss
from torch import Tensor

from clab_d2.modeling.contrastive.base import CONTRASTIVE_LOSS_REGISTRY, ContrastiveFrame
from clab_d2.modeling.contrastive.embedding import RoIEmbedding
from clab_d2.modeling.contrastive.examples import UNKNOWN, Examples
from clab_d2.modeling.contrastive.pair_contrast import checked_temperature
from clab_d2.modeling.contrastive.roi_contrast import Candidates, RoIContrast
from clab_d2.modeling.contrastive.whole_batch import stable_label


class MultiPositiveLoss(GenericPairLoss):
    """Cross entropy with several positives, a pair loss as pytorch-metric-learning's.

    For an anchor v, with its positives k+ and negatives k-::

        log(1 + sum over k-, k+ of exp(s(v, k-) - s(v, k+)))

    which is QDTrack's multi-positive embedding loss ("Quasi-Dense Similarity Learning for Multiple
    Object Tracking", CVPR 2021, section on quasi-dense similarity learning). There s is a dot
    product that an auxiliary loss keeps near a cosine; here it is the cosine over a temperature, as
    in CLAB's NT-Xent, which needs no auxiliary loss. The mean is over the anchors that have both a
    positive and a negative.
    """

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        """
        Args:
            temperature: what cosines are divided by.
            kwargs: see the library's losses.
        """
        super().__init__(mat_based_loss=True, **kwargs)
        self.temperature = temperature

    def _compute_loss(
        self, mat: Tensor, pos_mask: Tensor, neg_mask: Tensor
    ) -> dict[str, dict[str, Any]]:
        is_positive, is_negative = pos_mask.bool(), neg_mask.bool()
        anchors = (is_positive.any(1) & is_negative.any(1)).nonzero().flatten()
        if len(anchors) == 0:
            return self.zero_losses()
        logits = mat[anchors] / self.temperature
        negatives = logits.masked_fill(~is_negative[anchors], -torch.inf).logsumexp(1)
        positives = (-logits).masked_fill(~is_positive[anchors], -torch.inf).logsumexp(1)
        losses = F.softplus(negatives + positives)
        return {"loss": {"losses": losses, "indices": anchors, "reduction_type": "element"}}

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()


@CONTRASTIVE_LOSS_REGISTRY.register()
class TrackContrast(RoIContrast):
    """An object in other frames is alike, all other objects of all clips on all GPUs are not.

    A track is one over batches, too: remembered embeddings of an anchor's track are positives.
    Objects whose identity is not known are no anchors; they are negatives of objects of other
    videos, and left out for those of their own, as they may be the same.
    """

    @configurable
    def __init__(
        self, embedding: RoIEmbedding, temperature: float = 0.1, memory_size: int = 0
    ) -> None:
        """
        Args:
            embedding: conv, RoIAlign and projection.
            temperature: see :class:`MultiPositiveLoss`.
            memory_size: see :class:`~clab_d2.modeling.contrastive.pair_contrast.PairContrast`.
        """
        loss = MultiPositiveLoss(temperature=checked_temperature(temperature))
        super().__init__(embedding, loss, memory_size)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "embedding": RoIEmbedding(cfg, input_shape),
            **cls.common_arguments(cfg),
        }

    @property
    def appearance(self) -> RoIEmbedding:
        return self.embedding

    def candidates(self, frame: ContrastiveFrame, truth: Instances) -> Candidates:
        labels = [
            stable_label(*frame.video, track) if track >= 0 else UNKNOWN
            for track in truth.gt_tracks.tolist()
        ]
        boxes = truth.gt_boxes
        return Candidates(
            boxes,
            torch.tensor(labels, dtype=torch.int64, device=boxes.device),
            torch.ones(len(boxes), device=boxes.device),
        )

    def pairs(self, anchors: Examples, others: Examples, remembered: bool) -> tuple[Tensor, Tensor]:
        same = anchors.labels[:, None] == others.labels
        known = (anchors.labels != UNKNOWN)[:, None] & (others.labels != UNKNOWN)
        other_video = anchors.videos[:, None] != others.videos
        return same & known, ~same & (known | other_video)
