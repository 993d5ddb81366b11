"""FCOS's head: one prediction at each position, and how near the middle of its object it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Instances
from torch import Tensor

from clab_d2.modeling.dense_heads.base import (
    DENSE_HEAD_REGISTRY,
    DenseHead,
    DensePredictions,
    GivenMaps,
    build_network,
    in_single_precision,
)


@DENSE_HEAD_REGISTRY.register(name="FCOS")
class FCOSDenseHead(DenseHead, FCOS):
    """Detectron2's FCOS, given maps instead of images; its labels and losses are as they are.

    Source: "FCOS: A Simple and Strong Anchor-free Object Detector" (TPAMI 2020).
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """
        Args:
            kwargs: Detectron2's :class:`FCOS` arguments.
        """
        super().__init__(**kwargs)
        # Detectron2 keeps this running mean in a plain attribute, which a resumed training lacks.
        self.register_buffer("loss_normalizer", torch.tensor(300.0))

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        retina = cfg.MODEL.RETINANET
        return {
            "backbone": GivenMaps(shapes),
            "head": build_network(cfg, list(shapes.values()), 1, centerness=True),
            "head_in_features": list(shapes),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "center_sampling_radius": cfg.MODEL.DENSE.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": retina.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retina.FOCAL_LOSS_GAMMA,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def dims(self) -> tuple[int, ...]:
        return self.num_classes, 4, 1

    def detection_losses(
        self, output: DensePredictions, targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """See :meth:`DenseHead.detection_losses`."""
        labels, boxes = self.label_anchors(output.anchors, list(targets))
        logits, deltas, centerness = (
            [in_single_precision(x) for x in part] for part in output.predictions
        )
        return self.losses(output.anchors, logits, labels, deltas, boxes, centerness)

    def score_logits(self, predictions: Sequence[Tensor]) -> Tensor:
        """See :meth:`DenseHead.score_logits`; a score is the geometric mean of the class's and the
        centerness, as in Detectron2."""
        logits, _, centerness = predictions
        product = in_single_precision(logits).sigmoid() * in_single_precision(centerness).sigmoid()
        return product.sqrt().logit(eps=1e-6)

    def best_scores(self, predictions: Sequence[Tensor]) -> Tensor:
        """See :meth:`DenseHead.best_scores`."""
        logits, _, centerness = predictions
        best = in_single_precision(logits.amax(dim=-1)).sigmoid()
        return (best * in_single_precision(centerness[..., 0]).sigmoid()).sqrt()
