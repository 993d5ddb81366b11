"""CocoVID JSON -> Detectron2 dataset dicts, with everything wrong in the file said at once.

The format is COCO's plus ``videos`` (id, name) and, for each image, ``video_id`` and ``frame_id``
(from 0, without gaps); README.md in ``datasets/`` describes it. An image without a ``video_id``, as
in an ordinary COCO file, is a still: a video of its own, of one frame. Frames need not be pictures:
a video's ``file`` names the video file that they are read from (see :mod:`.frame_files`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from clab_d2.data.frame_files import FrameFiles, first_out_of_order
from clab_d2.data.json_values import (
    is_box,
    is_file_name,
    is_flag,
    is_integer,
    is_number,
    is_size,
)
from clab_d2.data.video_table import VideoRecord, VideoTable, join_image_root
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import refuse_special_file

logger = logging.getLogger(__name__)

Json = dict[str, Any]


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
    classes = _classes_of(json_file, data["categories"], name)
    videos = _group_into_videos(json_file, data)
    _warn_of_disorder(json_file, videos)
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
        _set_metadata(name, classes)

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
    classes = _classes_of(json_file, data["categories"], name)
    videos = _group_into_videos(json_file, data)
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


def read_coco_json(json_file: str) -> Json:
    """Read a COCO-style file and check its outline: an object with its three lists.

    Raises:
        DataError: the file is missing, not whole JSON, or not COCO.
    """
    refuse_special_file(json_file)
    try:
        with open(json_file, encoding="utf-8") as file:
            data = json.load(file)
    except FileNotFoundError:
        raise _missing_file(json_file) from None
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise DataError(
            f"{json_file}: not a whole JSON file ({error}); it was cut off or damaged, fetch or "
            "make it again"
        ) from None
    except OSError as error:
        raise DataError(f"{json_file}: cannot be read ({error.strerror})") from None
    for key in ("images", "annotations", "categories", "videos"):
        # A COCO file of stills has no videos.
        default = [] if key == "videos" else None
        if not isinstance(data, dict) or not isinstance(data.get(key, default), list):
            raise DataError(f'{json_file}: no list "{key}"; a CocoVID file needs one')
    if not data["images"]:
        raise DataError(f'{json_file}: "images" is empty; the dataset has no frame')
    return data


def _missing_file(json_file: str) -> DataError:
    """Return the error that an annotation file is not there."""
    return DataError(
        f"{json_file}: no such annotation file; check the path (built-in datasets are looked for "
        "in $DETECTRON2_DATASETS, or datasets/), or make it as datasets/README.md says"
    )


def read_classes_metadata(json_file: str) -> Json:
    """Return the metadata that describes the classes of a COCO-style file, in the file's order."""
    classes = _classes_of(json_file, read_coco_json(json_file)["categories"], None)
    return _metadata_of(classes)


@dataclass(frozen=True)
class _Classes:
    names: list[str]
    index_of_id: dict[int, int]  # the JSON's category id -> index in names
    ignored_ids: set[int]  # categories of the JSON that are no class of the dataset


def _classes_of(json_file: str, categories: Sequence[Json], name: str | None) -> _Classes:
    for position, category in enumerate(categories):
        _require(json_file, "categories", position, category, {"id": int, "name": str})
    ids = [category["id"] for category in categories]
    names = [category["name"] for category in categories]
    for what, values in (("id", ids), ("name", names)):
        if len(set(values)) != len(values):
            raise DataError(
                f"{json_file}: two categories share the {what} {_first_repeat(values)!r}; give "
                "each its own"
            )
    wanted = _declared_classes(name) or names
    if not set(wanted) & set(names):
        raise DataError(
            f"{json_file}: none of its categories ({_some(names)}) is a class of dataset "
            f"{name!r} ({_some(wanted)}); register it under a name of its own in DATASETS.VID"
        )
    index_of_name = {class_name: index for index, class_name in enumerate(wanted)}
    index_of_id = {
        category_id: index_of_name[category]
        for category_id, category in zip(ids, names, strict=True)
        if category in index_of_name
    }
    return _Classes(list(wanted), index_of_id, set(ids) - set(index_of_id))


def _declared_classes(name: str | None) -> list[str] | None:
    """Classes given at registration, as opposed to those taken over from the JSON."""
    metadata = MetadataCatalog.get(name) if name is not None else None
    if metadata is None or metadata.get("classes_from_json"):
        return None
    return metadata.get("thing_classes")


def _set_metadata(name: str, classes: _Classes) -> None:
    metadata = MetadataCatalog.get(name)
    values = _metadata_of(classes)
    if _declared_classes(name) is not None:
        values = {"thing_dataset_id_to_contiguous_id": classes.index_of_id}
    for key, value in values.items():
        # Metadata refuses to change a value; a JSON made anew under the same name may.
        vars(metadata).pop(key, None)
        setattr(metadata, key, value)


def _metadata_of(classes: _Classes) -> Json:
    return {
        "classes_from_json": True,
        "thing_classes": classes.names,
        "thing_dataset_id_to_contiguous_id": classes.index_of_id,
    }


@dataclass(frozen=True)
class _Video:
    video_id: int
    name: str
    file: str | None  # the video file that the JSON names
    images: list[Json]  # by frame


def _group_into_videos(json_file: str, data: Json) -> list[_Video]:
    """Sort images into videos and check that each video's frames are 0, 1, 2, ... once each."""
    names: dict[int, str] = {}
    files: dict[int, str] = {}
    for position, video in enumerate(data.get("videos", [])):
        _require(json_file, "videos", position, video, {"id": int})
        if video.get("file") is not None:
            _require(json_file, "videos", position, video, {"file": str})
            _require_file_name(json_file, f"video {video['id']}", video["file"])
            files[video["id"]] = video["file"]
        if video["id"] in names:
            raise DataError(
                f'{json_file}: two videos have the id {video["id"]}; give each its own'
            )
        names[video["id"]] = str(video.get("name") or "")
    frames: dict[int, list[Json]] = {video_id: [] for video_id in names}
    stills: list[Json] = []
    needed = {"id": int, "file_name": str, "height": int, "width": int}
    for position, image in enumerate(data["images"]):
        _require(json_file, "images", position, image, needed)
        _require_file_name(json_file, f"image {image['id']}", image["file_name"])
        if not is_size(image["height"]) or not is_size(image["width"]):
            raise DataError(
                f"{json_file}: image {image['id']} ({image['file_name']}) has size "
                f"{image['width']}x{image['height']}; state its size in pixels"
            )
        video_id = image.get("video_id")
        if video_id is None:
            stills.append(image)
            continue
        _require(json_file, "images", position, image, {"video_id": int})
        if video_id not in frames:
            raise DataError(
                f"{json_file}: image {image['id']} ({image['file_name']}) belongs to video "
                f'{video_id}, which "videos" does not list; add it there'
            )
        _require(json_file, "images", position, image, {"frame_id": int})
        frames[video_id].append(image)
    image_ids = [image["id"] for image in data["images"]]
    if len(set(image_ids)) != len(image_ids):
        raise DataError(
            f"{json_file}: two images have the id {_first_repeat(image_ids)}; give each its own"
        )

    videos = []
    for video_id, images in frames.items():
        images.sort(key=lambda image: image["frame_id"])
        for expected, image in enumerate(images):
            if image["frame_id"] != expected:
                _raise_frame_error(json_file, names[video_id] or f"{video_id}", expected, image)
        if images:
            videos.append(_Video(video_id, names[video_id], files.get(video_id), images))
    if len(videos) < len(frames):
        empty = [names[v] or f"{v}" for v, images in frames.items() if not images]
        logger.warning(
            "%s: %d video(s) have no frame and are left out: %s", json_file, len(empty),
            _some(empty),
        )
    first_still = max(frames, default=0) + 1
    videos += [_Video(first_still + i, "", None, [image]) for i, image in enumerate(stills)]
    return videos


def _warn_of_disorder(json_file: str, videos: Iterable[_Video]) -> None:
    """Warn once where frames are numbered in another order than their files' names are."""
    found = []
    for video in videos:
        place = first_out_of_order([image["file_name"] for image in video.images])
        if place is not None:
            found.append((video, place))
    if found:
        video, place = found[0]
        before, after = (video.images[i]["file_name"] for i in (place - 1, place))
        logger.warning(
            "%s: frame_id disagrees with the numbers in the file names of %d video(s): of %s, "
            "frame %d is %s and frame %d is %s; if the names are right, number the frames by them",
            json_file, len(found), video.name or video.video_id, place - 1, before, place, after,
        )


def _raise_frame_error(json_file: str, video: str, expected: int, image: Json) -> None:
    frame_id = image["frame_id"]
    if frame_id < 0:
        problem = f"has frame_id {frame_id}"
    elif frame_id < expected:
        problem = f"has two frames with frame_id {frame_id}"
    else:
        problem = f"has no frame with frame_id {expected} but one with {frame_id}"
    raise DataError(
        f"{json_file}: video {video} {problem} ({image['file_name']}); number the frames of each "
        "video 0, 1, 2, ... without gap or repeat"
    )


def _attach_annotations(
    json_file: str, data: Json, classes: _Classes, records: Iterable[Json]
) -> None:
    """Put each annotation into its frame's record, and check all of them, used or not."""
    known_images = {image["id"] for image in data["images"]}
    annotations_of = {record["image_id"]: record["annotations"] for record in records}
    needed = {"image_id": int, "category_id": int, "bbox": list}
    optional = {"instance_id": int, "motion_iou": float, "area": float}
    for position, annotation in enumerate(data["annotations"]):
        _require(json_file, "annotations", position, annotation, needed)
        given = {k: kind for k, kind in optional.items() if annotation.get(k) is not None}
        _require(json_file, "annotations", position, annotation, given)
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
                f"{json_file}: annotation {_id(annotation, position)} has bbox {_short(bbox)}; a "
                "box is [x, y, width, height], four finite numbers, in pixels"
            )
        iscrowd = annotation.get("iscrowd", 0)
        if not is_flag(iscrowd):
            raise DataError(
                f"{json_file}: annotation {_id(annotation, position)} has iscrowd "
                f"{_short(iscrowd)}; it must be 0 or 1"
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


def _require_file_name(json_file: str, record: str, name: str) -> None:
    if not is_file_name(name):
        raise DataError(
            f"{json_file}: {record} names {_short(name)}, which no file can be called; correct it"
        )


_KINDS: dict[type, tuple[Callable[[Any], bool], str]] = {
    int: (is_integer, "an integer of at most 64 bits"),
    float: (is_number, "a number, and finite"),
    str: (lambda value: isinstance(value, str), "a string"),
    list: (lambda value: isinstance(value, list), "a list"),
}


def _require(json_file: str, list_name: str, position: int, record: Any, keys: Json) -> None:
    for key, kind in keys.items():
        value = record.get(key) if isinstance(record, dict) else None
        fits, name = _KINDS[kind]
        if fits(value):
            continue
        has_id = isinstance(record, dict) and "id" in record
        identity = f" (id {_short(record['id'])})" if has_id else ""
        what = "no" if value is None else f"{_short(value)} as"
        raise DataError(
            f'{json_file}: {list_name}[{position}]{identity} has {what} "{key}"; it must be {name}'
        )


def _short(value: Any, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _id(annotation: Json, position: int) -> str:
    return _short(annotation["id"]) if "id" in annotation else f"number {position}"


def _first_repeat(values: Iterable[Any]) -> Any:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


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
    videos: Sequence[_Video],
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
        )
        for video, names in zip(videos, file_names, strict=True)
    ]
    _tables[name] = _KnownTable(source, VideoTable(files.root, records, files.not_found))
