"""Models: importing the package registers them with Detectron2's registries."""

from clab_d2.modeling.aggregation.selsa import SELSABlock, SELSABoxHead
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.backbones.resnet_dc5 import (
    SingleScaleBackbone,
    build_resnet_dc5_backbone,
    fix_batch_norm_statistics,
)
from clab_d2.modeling.contrastive.branch import ContrastiveBranch, contrastive_weight
from clab_d2.modeling.optimize import prepare_for_inference
from clab_d2.modeling.reference_memory import FrameFeatures, ReferenceMemory, References
from clab_d2.modeling.rpn import TemporalRPN
from clab_d2.modeling.temporal_rcnn import TemporalRCNN
from clab_d2.modeling.temporal_roi_heads import TemporalROIHeads

__all__ = [
    "ContrastiveBranch",
    "FrameFeatures",
    "ReferenceMemory",
    "References",
    "SELSABlock",
    "SELSABoxHead",
    "SingleScaleBackbone",
    "TemporalRCNN",
    "TemporalROIHeads",
    "TemporalRPN",
    "TemporalRoIAlign",
    "build_resnet_dc5_backbone",
    "contrastive_weight",
    "fix_batch_norm_statistics",
    "prepare_for_inference",
]
