"""Datasets of videos: formats, sampling of reference frames, clips and loaders.

Importing it registers the built-in datasets with Detectron2's catalogs.
"""

from clab_d2.data.build import build_vid_test_loader, build_vid_train_loader
from clab_d2.data.catalog import (
    check_files,
    check_num_classes,
    collect_bad_frames,
    register_datasets_from_config,
)
from clab_d2.data.coco_vid import get_video_table, load_coco_vid, register_coco_vid
from clab_d2.data.dataset_mapper import VIDDatasetMapper
from clab_d2.data.imagenet_vid import register_builtin_datasets
from clab_d2.data.reference_sampling import (
    REFERENCE_SAMPLING_REGISTRY,
    ReferenceSampling,
    build_reference_sampling,
)
from clab_d2.data.samplers import VideoBatchSampler, VideoSampler
from clab_d2.data.video_table import VideoTable

__all__ = [
    "REFERENCE_SAMPLING_REGISTRY",
    "ReferenceSampling",
    "VIDDatasetMapper",
    "VideoBatchSampler",
    "VideoSampler",
    "VideoTable",
    "build_reference_sampling",
    "build_vid_test_loader",
    "build_vid_train_loader",
    "check_files",
    "check_num_classes",
    "collect_bad_frames",
    "get_video_table",
    "load_coco_vid",
    "register_builtin_datasets",
    "register_coco_vid",
    "register_datasets_from_config",
]

register_builtin_datasets()
