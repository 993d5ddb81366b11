"""RetinaNet's head: anchors, matched by IoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Instances
from torch import Tensor

from clab_d2.errors import ConfigError
from clab_d2.modeling.dense_heads.base import (
    DENSE_HEAD_REGISTRY,
    DenseHead,
    DensePredictions,
    GivenMaps,
    build_network,
    in_single_precision,
)


@DENSE_HEAD_REGISTRY.register(name="RetinaNet")
class RetinaNetDenseHead(DenseHead, RetinaNet):
    """Detectron2's RetinaNet, given maps instead of images; its labels and losses are as they are.

    Source: "Focal Loss for Dense Object Detection" (ICCV 2017).
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """
        Args:
            kwargs: Detectron2's :class:`RetinaNet` arguments.
        """
        super().__init__(**kwargs)
        # Detectron2 keeps this running mean in a plain attribute, which a resumed training lacks.
        self.register_buffer("loss_normalizer", torch.tensor(100.0))

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
        retina, levels = cfg.MODEL.RETINANET, list(shapes.values())
        generator = build_anchor_generator(cfg, levels)
        num_anchors = set(generator.num_anchors)
        if len(num_anchors) != 1:
            raise ConfigError(
                "MODEL.ANCHOR_GENERATOR has levels of different numbers of anchors; give each "
                "level of MODEL.RETINANET.IN_FEATURES as many"
            )
        return {
            "backbone": GivenMaps(shapes),
            "head": build_network(cfg, levels, num_anchors.pop(), centerness=False),
            "head_in_features": list(shapes),
            "anchor_generator": generator,
            "box2box_transform": Box2BoxTransform(weights=retina.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(
                retina.IOU_THRESHOLDS, retina.IOU_LABELS, allow_low_quality_matches=True
            ),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "focal_loss_alpha": retina.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retina.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": retina.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": retina.BBOX_REG_LOSS_TYPE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def dims(self) -> tuple[int, ...]:
        return self.num_classes, 4

    def detection_losses(
        self, output: DensePredictions, targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """See :meth:`DenseHead.detection_losses`."""
        labels, boxes = self.label_anchors(output.anchors, list(targets))
        logits, deltas = ([in_single_precision(x) for x in part] for part in output.predictions)
        return self.losses(output.anchors, logits, labels, deltas, boxes)

    def score_logits(self, predictions: Sequence[Tensor]) -> Tensor:
        """See :meth:`DenseHead.score_logits`."""
        return in_single_precision(predictions[0])

    def best_scores(self, predictions: Sequence[Tensor]) -> Tensor:
        """See :meth:`DenseHead.best_scores`."""
        return in_single_precision(predictions[0].amax(dim=-1)).sigmoid()
