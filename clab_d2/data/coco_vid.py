"""CocoVID JSON -> Detectron2 dataset dicts, with everything wrong in the file said at once.

The format is COCO's plus ``videos`` (id, name) and, for each image, ``video_id`` and ``frame_id``
(from 0, without gaps); README.md in ``datasets/`` describes it. An image without a ``video_id``, as
in an ordinary COCO file, is a still: a video of its own, of one frame. Frames need not be pictures:
a video's ``file`` names the video file that they are read from (see :mod:`.frame_files`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from clab_d2.data.coco_json import (
    Json,
    Video,
    group_into_videos,
    read_coco_json,
    require,
    short,
    warn_of_disorder,
)
from clab_d2.data.dataset_classes import DatasetClasses, classes_of, set_metadata
from clab_d2.data.frame_files import FrameFiles
from clab_d2.data.json_values import is_box, is_flag
from clab_d2.data.video_table import VideoRecord, VideoTable, join_image_root
from clab_d2.errors import ConfigError, DataError


def register_coco_vid(name: str, metadata: Json, json_file: str, image_root: str) -> None:
    """Register a CocoVID dataset with Detectron2's catalogs; nothing is read yet.

    Args:
        name: the dataset's name in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        metadata: more metadata. With ``thing_classes``, only objects of these classes are used, in
            this order, and any other category of the JSON is ignored (as DET's "other" is); without
            it the JSON's categories are the classes, in the JSON's order.
        json_file: the annotations.
        image_root: folder that the JSON's file names are relative to, or a single video's file.
    """
    DatasetCatalog.register(name, lambda: load_coco_vid(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=str(json_file), image_root=str(image_root), evaluator_type="vid", **metadata
    )


def load_coco_vid(
    json_file: str, image_root: str, name: str | None = None, key_frames_only: bool = False
) -> list[Json]:
    """Read a CocoVID (or plain COCO) JSON file.

    Args:
        json_file: the annotations.
        image_root: folder that the JSON's file names are relative to, or a single video's file.
        name: the registered dataset this is; its metadata gives the classes if it declares any,
            and gets those of the JSON otherwise. It is also what :func:`get_video_table` finds the
            videos by.
        key_frames_only: return only frames that may be key frames in training. ImageNet VID has
            one in nineteen: the others are needed as references only, which takes no more than
            their file names.

    Returns:
        One dict a frame, video by video in the JSON's order and frame by frame, stills last:
        Detectron2's standard (``file_name``, ``height``, ``width``, ``image_id``, ``annotations``)
        and ``video_id``, ``frame_id``, ``num_frames`` (of the video), ``dataset_name``,
        ``annotated`` (whether the truth is known), ``is_key_frame`` (whether it may be a key frame
        in training: annotated and, where any image says so, ``is_vid_train_frame``). An
        annotation's ``instance_id`` is -1 where the JSON gives none.

    Raises:
        DataError: the file is missing or not whole JSON, or a record lacks a key, contradicts
            another one or refers to one that isn't there; or it can't be told in which video file
            a video's frames are.
    """
    json_file, image_root = str(json_file), str(image_root)
    data = read_coco_json(json_file)
    classes = classes_of(json_file, data["categories"], name)
    videos = group_into_videos(json_file, data)
    warn_of_disorder(json_file, videos)
    files = FrameFiles(image_root, len(videos))
    file_names = [
        files.names(
            video.name,
            video.file,
            [image["file_name"] for image in video.images],
            range(len(video.images)),
        )
        for video in videos
    ]
    _remember_table(name, _source_of(json_file, image_root), files, videos, file_names)
    if name is not None:
        set_metadata(name, classes)

    marked = any("is_vid_train_frame" in image for image in data["images"])
    records: list[Json] = []
    for video, names in zip(videos, file_names, strict=True):
        for frame_id, image in enumerate(video.images):
            annotated = bool(image.get("annotated", True))
            is_key_frame = annotated and (not marked or bool(image.get("is_vid_train_frame")))
            if key_frames_only and not is_key_frame:
                continue
            records.append(
                {
                    "file_name": join_image_root(files.root, names[frame_id]),
                    "height": image["height"],
                    "width": image["width"],
                    "image_id": image["id"],
                    "video_id": video.video_id,
                    "frame_id": frame_id,
                    "num_frames": len(video.images),
                    "dataset_name": name,
                    "is_key_frame": is_key_frame,
                    "annotated": annotated,
                    "annotations": [],
                }
            )
    if not data["annotations"] or not any(i.get("annotated", True) for i in data["images"]):
        raise DataError(
            f"{json_file}: no frame is annotated, so there is nothing to learn or to measure; "
            'add annotations, or remove "annotated": false from the images that have them'
        )
    _attach_annotations(json_file, data, classes, records)
    return records


def read_truth(
    json_file: str, name: str | None
) -> tuple[dict[int, list[bool]], list[tuple[int, int, list[float], int, int, bool]]]:
    """Read the truth of all frames of a dataset, key frames or not.

    Args:
        json_file: the annotations.
        name: the registered dataset, whose classes count; None: those of the JSON.

    Returns:
        For each video id whether the truth of each of its frames is known, and of every object the
        video id, the frame id, the box (x, y, width, height), the class, the ``instance_id`` (-1
        where the JSON gives none) and whether it is a crowd.

    Raises:
        DataError: as :func:`load_coco_vid`.
    """
    data = read_coco_json(json_file)
    classes = classes_of(json_file, data["categories"], name)
    videos = group_into_videos(json_file, data)
    annotated = {v.video_id: [bool(i.get("annotated", True)) for i in v.images] for v in videos}
    records = [
        {"image_id": image["id"], "place": (video.video_id, frame_id), "annotations": []}
        for video in videos
        for frame_id, image in enumerate(video.images)
    ]
    _attach_annotations(json_file, data, classes, records)
    objects = [
        (*record["place"], a["bbox"], a["category_id"], a["instance_id"], bool(a["iscrowd"]))
        for record in records
        for a in record["annotations"]
    ]
    return annotated, objects


def get_video_table(dataset_name: str) -> VideoTable:
    """Return the table of a registered dataset's videos; its JSON is read if it wasn't yet."""
    metadata = MetadataCatalog.get(dataset_name)
    if dataset_name not in DatasetCatalog or metadata.get("evaluator_type") != "vid":
        raise ConfigError(
            f"{dataset_name!r} is not a registered video dataset; name its JSON and image folder "
            "in DATASETS.VID"
        )
    known = _tables.get(dataset_name)
    if known is None or known.source != _source_of(metadata.json_file, metadata.image_root):
        load_coco_vid(
            metadata.json_file, metadata.image_root, dataset_name, key_frames_only=True
        )
    return _tables[dataset_name].table


def _attach_annotations(
    json_file: str, data: Json, classes: DatasetClasses, records: Iterable[Json]
) -> None:
    """Put each annotation into its frame's record, and check all of them, used or not."""
    known_images = {image["id"] for image in data["images"]}
    annotations_of = {record["image_id"]: record["annotations"] for record in records}
    needed = {"image_id": int, "category_id": int, "bbox": list}
    optional = {"instance_id": int, "motion_iou": float, "area": float}
    for position, annotation in enumerate(data["annotations"]):
        require(json_file, "annotations", position, annotation, needed)
        given = {k: kind for k, kind in optional.items() if annotation.get(k) is not None}
        require(json_file, "annotations", position, annotation, given)
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in known_images:
            raise DataError(
                f'{json_file}: annotation {_id(annotation, position)} is of image {image_id}, '
                'which "images" does not list; add the image or remove the annotation'
            )
        category = classes.index_of_id.get(category_id)
        if category is None and category_id not in classes.ignored_ids:
            raise DataError(
                f"{json_file}: annotation {_id(annotation, position)} has category {category_id}, "
                'which "categories" does not list; add the category or correct the annotation'
            )
        bbox = annotation["bbox"]
        if not is_box(bbox):
            raise DataError(
                f"{json_file}: annotation {_id(annotation, position)} has bbox {short(bbox)}; a "
                "box is [x, y, width, height], four finite numbers, in pixels"
            )
        iscrowd = annotation.get("iscrowd", 0)
        if not is_flag(iscrowd):
            raise DataError(
                f"{json_file}: annotation {_id(annotation, position)} has iscrowd "
                f"{short(iscrowd)}; it must be 0 or 1"
            )
        into = annotations_of.get(image_id)
        if into is not None and category is not None:
            into.append(
                {
                    # Detectron2 scales a box of integers (ILSVRC's) in integers, cutting off.
                    "bbox": [float(value) for value in bbox],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": category,
                    "instance_id": annotation["instance_id"] if "instance_id" in given else -1,
                    "iscrowd": int(iscrowd),
                }
            )


def _id(annotation: Json, position: int) -> str:
    return short(annotation["id"]) if "id" in annotation else f"number {position}"


@dataclass(frozen=True)
class _KnownTable:
    source: tuple[Any, ...]
    table: VideoTable


_tables: dict[str, _KnownTable] = {}


def _source_of(json_file: str, image_root: str) -> tuple[Any, ...]:
    """Identify what a table was made from, so that a file made anew is read anew."""
    try:
        status = os.stat(json_file)
    except OSError:
        return (json_file, image_root)
    return (json_file, image_root, status.st_mtime_ns, status.st_size)


def _remember_table(
    name: str | None,
    source: tuple[Any, ...],
    files: FrameFiles,
    videos: Sequence[Video],
    file_names: Sequence[Sequence[str]],
) -> None:
    if name is None:
        return
    known = _tables.get(name)
    # What was not found may be there by now: then it is another table.
    if known and known.source == source and known.table.not_found == tuple(files.not_found):
        return  # the same table, with what it knows of unreadable frames
    records = [
        VideoRecord(
            video.video_id,
            video.name,
            names,
            [(image["height"], image["width"]) for image in video.images],
            video.shots,
        )
        for video, names in zip(videos, file_names, strict=True)
    ]
    _tables[name] = _KnownTable(source, VideoTable(files.root, records, files.not_found))
