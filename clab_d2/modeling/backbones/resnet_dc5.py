"""Detectron2's ResNet under a single-scale neck: C4, or dilated C5 ("DC5")."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import build_resnet_backbone

from clab_d2.modeling.backbones.necks import SingleScaleBackbone


@BACKBONE_REGISTRY.register()
def build_resnet_dc5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SingleScaleBackbone:
    """Detectron2's ResNet and the neck of ``MODEL.NECK``; see :class:`SingleScaleBackbone`."""
    stages = set(cfg.MODEL.RESNETS.OUT_FEATURES) | {cfg.MODEL.NECK.IN_FEATURE}
    if cfg.MODEL.CONTRASTIVE.ENABLED and cfg.MODEL.CONTRASTIVE.IN_FEATURE.startswith("res"):
        stages.add(cfg.MODEL.CONTRASTIVE.IN_FEATURE)
    # A stage deeper than the neck's would be computed at inference for nothing.
    deepest = cfg.MODEL.NECK.IN_FEATURE
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.OUT_FEATURES = sorted(
        stage for stage in stages if stage == "stem" or stage <= deepest
    )
    return SingleScaleBackbone(
        build_resnet_backbone(cfg, input_shape),
        in_feature=cfg.MODEL.NECK.IN_FEATURE,
        out_channels=cfg.MODEL.NECK.OUT_CHANNELS,
    )
