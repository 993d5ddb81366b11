"""Models: importing the package registers them with Detectron2's registries, and their parts with
ours."""

from clab_d2.modeling.aggregation.base import (
    BOX_AGGREGATION_REGISTRY,
    MAP_AGGREGATION_REGISTRY,
    PREDICTION_AGGREGATION_REGISTRY,
    ROI_AGGREGATION_REGISTRY,
    BoxAggregation,
    FrameMaps,
    MapAggregation,
    PredictionAggregation,
    RoIAggregation,
)
from clab_d2.modeling.aggregation.dual_affinity import DualAffinity
from clab_d2.modeling.aggregation.flow_guided import FlowGuided
from clab_d2.modeling.aggregation.selsa import SELSA
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.backbones.base import BottomUp, InputFormat
from clab_d2.modeling.backbones.batch_norm import fix_batch_norm_statistics
from clab_d2.modeling.backbones.necks import (
    FeaturePyramid,
    LightFeaturePyramid,
    PlainFeaturePyramid,
    SingleScaleBackbone,
)
from clab_d2.modeling.backbones.regnet import RegNetBackbone
from clab_d2.modeling.backbones.resnet_dc5 import build_resnet_dc5_backbone
from clab_d2.modeling.backbones.swin import Swin
from clab_d2.modeling.backbones.timm import TimmBackbone
from clab_d2.modeling.backbones.vitdet import PlainViT
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
from clab_d2.modeling.dense_heads.base import DENSE_HEAD_REGISTRY, DenseHead
from clab_d2.modeling.dense_heads.fcos import FCOSDenseHead
from clab_d2.modeling.dense_heads.retinanet import RetinaNetDenseHead
from clab_d2.modeling.optimize import prepare_for_inference
from clab_d2.modeling.reference_memory import FrameFeatures, ReferenceMemory, References
from clab_d2.modeling.roi_heads.box_head import TemporalBoxHead
from clab_d2.modeling.roi_heads.res5_box_head import Res5BoxHead
from clab_d2.modeling.roi_heads.temporal_cascade_roi_heads import TemporalCascadeROIHeads
from clab_d2.modeling.roi_heads.temporal_roi_heads import TemporalROIHeads
from clab_d2.modeling.rpn import MMDetectionRPN
from clab_d2.modeling.temporal_dense import TemporalDense
from clab_d2.modeling.temporal_detector import TemporalDetector
from clab_d2.modeling.temporal_rcnn import TemporalRCNN

__all__ = [
    "BOX_AGGREGATION_REGISTRY",
    "CONTRASTIVE_LOSS_REGISTRY",
    "DENSE_HEAD_REGISTRY",
    "MAP_AGGREGATION_REGISTRY",
    "PREDICTION_AGGREGATION_REGISTRY",
    "ROI_AGGREGATION_REGISTRY",
    "SELSA",
    "BottomUp",
    "BoxAggregation",
    "ClassContrast",
    "ClipContrast",
    "ContrastiveBranch",
    "ContrastiveFrame",
    "ContrastiveLoss",
    "DenseHead",
    "DualAffinity",
    "FCOSDenseHead",
    "FeaturePyramid",
    "FlowGuided",
    "ForegroundContrast",
    "FrameFeatures",
    "FrameMaps",
    "InputFormat",
    "LightFeaturePyramid",
    "MMDetectionRPN",
    "MapAggregation",
    "PlainFeaturePyramid",
    "PlainViT",
    "PredictionAggregation",
    "ReferenceMemory",
    "References",
    "RegNetBackbone",
    "Res5BoxHead",
    "RetinaNetDenseHead",
    "RoIAggregation",
    "SingleScaleBackbone",
    "Swin",
    "TemporalBoxHead",
    "TemporalCascadeROIHeads",
    "TemporalDense",
    "TemporalDetector",
    "TemporalRCNN",
    "TemporalROIHeads",
    "TemporalRoIAlign",
    "TimmBackbone",
    "TrackContrast",
    "build_resnet_dc5_backbone",
    "contrastive_weight",
    "fix_batch_norm_statistics",
    "prepare_for_inference",
]
