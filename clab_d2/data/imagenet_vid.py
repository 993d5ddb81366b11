"""ImageNet VID: its 30 classes, and the datasets that are registered by themselves."""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog

from clab_d2.data.coco_vid import register_coco_vid

# Class name -> WordNet id (the name of its folders and objects in ILSVRC), in class order.
_WNID_OF_CLASS = {
    "airplane": "n02691156",
    "antelope": "n02419796",
    "bear": "n02131653",
    "bicycle": "n02834778",
    "bird": "n01503061",
    "bus": "n02924116",
    "car": "n02958343",
    "cattle": "n02402425",
    "dog": "n02084071",
    "domestic_cat": "n02121808",
    "elephant": "n02503517",
    "fox": "n02118333",
    "giant_panda": "n02510455",
    "hamster": "n02342885",
    "horse": "n02374451",
    "lion": "n02129165",
    "lizard": "n01674464",
    "monkey": "n02484322",
    "motorcycle": "n03790512",
    "rabbit": "n02324045",
    "red_panda": "n02509815",
    "sheep": "n02411705",
    "snake": "n01726692",
    "squirrel": "n02355227",
    "tiger": "n02129604",
    "train": "n04468005",
    "turtle": "n01662784",
    "watercraft": "n04530566",
    "whale": "n02062744",
    "zebra": "n02391049",
}
IMAGENET_VID_CLASSES: tuple[str, ...] = tuple(_WNID_OF_CLASS)
IMAGENET_VID_WNIDS: tuple[str, ...] = tuple(_WNID_OF_CLASS.values())

# name -> (tree under the root, JSON in its annotations/, images in its Data/)
_BUILTIN = {
    "imagenet_vid_train": ("ILSVRC", "imagenet_vid_train.json", "VID"),
    "imagenet_vid_val": ("ILSVRC", "imagenet_vid_val.json", "VID"),
    "imagenet_det_30plus1cls": ("ILSVRC", "imagenet_det_30plus1cls.json", "DET"),
    "mini_vid_train": ("mini_vid", "imagenet_vid_train.json", "VID"),
    # Each class once, and four times, as a video's first object
    "mini_vid_train_8": ("mini_vid", "imagenet_vid_train_8.json", "VID"),
    "mini_vid_train_32": ("mini_vid", "imagenet_vid_train_32.json", "VID"),
    # More videos and fewer frames of each: see datasets/make_mini_vid.py
    "mini_vid_val": ("mini_vid", "imagenet_vid_val_every_3rd.json", "VID"),
    "mini_vid_val_all_frames": ("mini_vid", "imagenet_vid_val.json", "VID"),
    # Videos of other seeds, of which nothing is trained on: studies/mini_vid_other_videos.yaml
    "mini_vid_seed_7_val_all_frames": ("mini_vid_seed_7", "imagenet_vid_val.json", "VID"),
    "mini_vid_seed_8_val_all_frames": ("mini_vid_seed_8", "imagenet_vid_val.json", "VID"),
    "mini_vid_det": ("mini_vid", "imagenet_det_30plus1cls.json", "DET"),
}


def register_builtin_datasets(root: str | None = None) -> None:
    """Register ImageNet VID, its DET images and Mini VID, unless they are already.

    Args:
        root: folder that holds ``ILSVRC/``, ``mini_vid/`` and the like; by default the
            environment's ``DETECTRON2_DATASETS``, else ``datasets``.
    """
    root = root or os.environ.get("DETECTRON2_DATASETS") or "datasets"
    for name, (tree, json_name, images) in _BUILTIN.items():
        if name not in DatasetCatalog:
            register_coco_vid(
                name,
                {
                    "thing_classes": list(IMAGENET_VID_CLASSES),
                    "thing_dataset_id_to_contiguous_id": {
                        index + 1: index for index in range(len(IMAGENET_VID_CLASSES))
                    },
                },
                os.path.join(root, tree, "annotations", json_name),
                os.path.join(root, tree, "Data", images),
            )
