"""What tools that leave parts of a CocoVID file out have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from clab_d2.data.coco_vid import read_coco_json, read_truth
from clab_d2.evaluation.motion_iou import motion_iou_from_tracks

Json = dict[str, Any]


def read_coco_vid(json_file: str) -> Json:
    """Read a CocoVID (or COCO) file that a detector could be trained on.

    Raises:
        DataError: it could not be.
    """
    read_truth(json_file, None)
    return read_coco_json(json_file)


def summary_of(data: Json) -> str:
    """How much a file holds, in a few words."""
    annotated = sum(bool(image.get("annotated", True)) for image in data["images"])
    return (
        f"{len(data.get('videos', []))} videos, {len(data['images'])} images "
        f"({annotated} annotated), {len(data['annotations'])} objects"
    )


def video_of(image: Json) -> Hashable:
    """The video of an image; a still is one of its own."""
    video_id = image.get("video_id")
    return ("still", image["id"]) if video_id is None else video_id


def images_by_video(data: Json) -> dict[Hashable, list[Json]]:
    """The images of each video, as they stand in the file."""
    groups: dict[Hashable, list[Json]] = defaultdict(list)
    for image in data["images"]:
        groups[video_of(image)].append(image)
    return groups


def annotated_by_video(data: Json) -> Iterator[list[Json]]:
    """The annotated images of each video, in time."""
    for images in images_by_video(data).values():
        yield sorted(
            (image for image in images if image.get("annotated", True)),
            key=lambda image: image.get("frame_id", 0),
        )


def keep_annotated(data: Json, keep: Callable[[Any], bool]) -> Json:
    """The file with fewer annotated images; the others stay, as references.

    What an object's other boxes tell of its speed is written down before they go (``motion_iou``).

    Args:
        data: of :func:`read_coco_vid`; left as it is.
        keep: says of an image's id whether its annotations are to stay. The other images become
            ``"annotated": false``.
    """
    images = [
        {**image, "annotated": image.get("annotated", True) and keep(image["id"])}
        for image in data["images"]
    ]
    known = {image["id"] for image in images if image["annotated"]}
    annotations = [a for a in _with_motion(data) if a["image_id"] in known]
    return {**data, "images": images, "annotations": annotations}


def _with_motion(data: Json) -> list[Json]:
    """The annotations, with the ``motion_iou`` of those of a track that have none."""
    images = {image["id"]: image for image in data["images"]}
    rows, table = [], []
    for row, annotation in enumerate(data["annotations"]):
        image = images[annotation["image_id"]]
        track = annotation.get("instance_id")
        is_tracked = isinstance(track, int) and track >= 0 and image.get("annotated", True)
        if is_tracked and image.get("video_id") is not None:
            x, y, width, height = annotation["bbox"]
            box = (x, y, x + width, y + height)
            rows.append(row)
            table.append((image["video_id"], track, image["frame_id"], *box))
    columns = np.array(table, dtype=np.float64).reshape(-1, 7)
    motion = motion_iou_from_tracks(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3:])
    annotations = list(data["annotations"])
    for row, value in zip(rows, motion.tolist(), strict=True):
        if annotations[row].get("motion_iou") is None:
            annotations[row] = {**annotations[row], "motion_iou": value}
    return annotations
