"""Datasets of videos: formats, sampling of reference frames, clips and loaders."""

from typing import TYPE_CHECKING

from clab_d2._lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__ = lazy_names(
    __name__,
    {
        "REFERENCE_SAMPLING_REGISTRY": "clab_d2.data.reference_sampling",
        "ReferenceSampling": "clab_d2.data.reference_sampling",
        "VIDDatasetMapper": "clab_d2.data.dataset_mapper",
        "VideoBatchSampler": "clab_d2.data.samplers",
        "VideoSampler": "clab_d2.data.samplers",
        "VideoTable": "clab_d2.data.video_table",
        "build_reference_sampling": "clab_d2.data.reference_sampling",
        "build_vid_test_loader": "clab_d2.data.build",
        "build_vid_train_loader": "clab_d2.data.build",
        "check_files": "clab_d2.data.catalog",
        "check_num_classes": "clab_d2.data.catalog",
        "collect_bad_frames": "clab_d2.data.catalog",
        "get_video_table": "clab_d2.data.coco_vid",
        "load_coco_vid": "clab_d2.data.coco_vid",
        "register_builtin_datasets": "clab_d2.data.imagenet_vid",
        "register_coco_vid": "clab_d2.data.coco_vid",
        "register_datasets_from_config": "clab_d2.data.catalog",
    },
)
