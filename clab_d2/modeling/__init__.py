"""Models: importing the package registers them with Detectron2's registries, and their parts with
ours."""

from clab_d2.modeling.aggregation.base import (
    BOX_AGGREGATION_REGISTRY,
    MAP_AGGREGATION_REGISTRY,
    ROI_AGGREGATION_REGISTRY,
    BoxAggregation,
    FrameMaps,
    MapAggregation,
    RoIAggregation,
)
from clab_d2.modeling.aggregation.flow_guided import FlowGuided
from clab_d2.modeling.aggregation.selsa import SELSA
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.backbones.resnet_dc5 import (
    SingleScaleBackbone,
    build_resnet_dc5_backbone,
    fix_batch_norm_statistics,
)
from clab_d2.modeling.contrastive.base import (
    CONTRASTIVE_LOSS_REGISTRY,
    ContrastiveFrame,
    ContrastiveLoss,
)
from clab_d2.modeling.contrastive.branch import ContrastiveBranch
from clab_d2.modeling.contrastive.class_contrast import ClassContrast
from clab_d2.modeling.contrastive.clip_contrast import ClipContrast
from clab_d2.modeling.contrastive.foreground_contrast import ForegroundContrast
from clab_d2.modeling.contrastive.schedule import contrastive_weight
from clab_d2.modeling.contrastive.track_contrast import TrackContrast
from clab_d2.modeling.optimize import prepare_for_inference
from clab_d2.modeling.reference_memory import FrameFeatures, ReferenceMemory, References
from clab_d2.modeling.roi_heads.box_head import TemporalBoxHead
from clab_d2.modeling.roi_heads.temporal_cascade_roi_heads import TemporalCascadeROIHeads
from clab_d2.modeling.roi_heads.temporal_roi_heads import TemporalROIHeads
from clab_d2.modeling.rpn import MMDetectionRPN
from clab_d2.modeling.temporal_detector import TemporalDetector
from clab_d2.modeling.temporal_rcnn import TemporalRCNN

__all__ = [
    "BOX_AGGREGATION_REGISTRY",
    "CONTRASTIVE_LOSS_REGISTRY",
    "MAP_AGGREGATION_REGISTRY",
    "ROI_AGGREGATION_REGISTRY",
    "SELSA",
    "BoxAggregation",
    "ClassContrast",
    "ClipContrast",
    "ContrastiveBranch",
    "ContrastiveFrame",
    "ContrastiveLoss",
    "FlowGuided",
    "ForegroundContrast",
    "FrameFeatures",
    "FrameMaps",
    "MMDetectionRPN",
    "MapAggregation",
    "ReferenceMemory",
    "References",
    "RoIAggregation",
    "SingleScaleBackbone",
    "TemporalBoxHead",
    "TemporalCascadeROIHeads",
    "TemporalDetector",
    "TemporalRCNN",
    "TemporalROIHeads",
    "TemporalRoIAlign",
    "TrackContrast",
    "build_resnet_dc5_backbone",
    "contrastive_weight",
    "fix_batch_norm_statistics",
    "prepare_for_inference",
]
