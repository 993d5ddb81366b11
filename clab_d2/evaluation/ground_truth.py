"""What there is to be found in a dataset, as flat arrays, read from its JSON and checked."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clab_d2.data.json_values import is_shots
from clab_d2.data.shot_references import shot_number
from clab_d2.data.video_frames import split_frame_name
from clab_d2.errors import DataError
from clab_d2.evaluation.boxes import xywh_to_xyxy
from clab_d2.evaluation.json_arrays import MAX_ID, box_array, integer_array, number_array
from clab_d2.evaluation.motion_iou import motion_iou_from_tracks
from clab_d2.io import read_json

logger = logging.getLogger(__name__)

Json = dict[str, Any]


@dataclass(frozen=True)
class GroundTruth:
    """What there is to be found in a dataset; images and classes are numbered from 0.

    Attributes:
        source: the file it came from, for messages.
        class_names, class_ids: (C) of each class, in the JSON's order; ids are the JSON's.
        image_ids: (I,) the JSON's image ids, rising.
        annotated: (I,) bool; False: the truth about the frame is unknown, so it does not count.
        video_of_image: (I,) the frame's video, an index into ``video_names``.
        frame_of_image: (I,) int64, the frame's number in its video; -1 where it is not known.
        shot_of_image: (I,) int64, which shot of its video the frame is in, from 0.
        video_names: of each video; a still image is a video under its own file name.
        image, box, class_index, area, crowd, motion_iou, identity: of each of the M objects in
            annotated frames: image index, (M, 4) xywh in pixels, class index, square pixels, bool,
            overlap with itself in nearby frames, from 0 to 1 (NaN where nothing tells which boxes
            of other frames are the same object's), and which object of its video it is, int64 (-1
            where it is not known).
        condition_names: what the annotations' optional ``condition`` says, each once, sorted.
        condition: (M,) of each object, an index into ``condition_names``; -1 where it has none.
        places: (I) of each image, the file or name of its video and its number there, from 0; None
            where it has none.
    """

    source: str
    class_names: list[str]
    class_ids: np.ndarray
    image_ids: np.ndarray
    annotated: np.ndarray
    video_of_image: np.ndarray
    frame_of_image: np.ndarray
    shot_of_image: np.ndarray
    video_names: list[str]
    image: np.ndarray
    box: np.ndarray
    class_index: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    motion_iou: np.ndarray
    identity: np.ndarray
    condition: np.ndarray
    condition_names: Sequence[str] = ()
    places: Sequence[tuple[str, int] | None] = ()

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> GroundTruth:
        """Read a COCO or CocoVID JSON.

        Raises:
            DataError: the file is missing, no JSON, or lacks what it must have.
        """
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, content: Any, source: str) -> GroundTruth:
        """Take the content of a COCO or CocoVID JSON; ``source`` names it in messages.

        An annotation's own ``motion_iou`` decides; where it has none, it is computed from its
        track (see :mod:`clab_d2.evaluation.motion_iou`). An ``instance_id`` that is missing, null
        or negative is no identity: such an object's motion is unknown.

        Raises:
            DataError: it lacks what it must have, or has something else there.
        """
        if not isinstance(content, dict) or not all(
            isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
        ):
            raise DataError(
                f"{source}: not a COCO annotation file: it needs the lists images, annotations "
                "and categories"
            )
        try:
            return cls._from_lists(content, source)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{source}: an image, annotation or category is malformed ({what}); "
                "check the file, for instance with tools/check_dataset.py"
            ) from error

    @classmethod
    def _from_lists(cls, content: Json, source: str) -> GroundTruth:
        categories = content["categories"]
        class_ids = integer_array([category["id"] for category in categories])
        class_names = [str(category["name"]) for category in categories]
        for what, values in (("id", class_ids.tolist()), ("name", class_names)):
            if len(set(values)) < len(values):
                raise DataError(f"{source}: two categories have the same {what}; give each its own")
        images = sorted(content["images"], key=lambda image: image["id"])
        image_ids = integer_array([image["id"] for image in images])
        if len(np.unique(image_ids)) < len(image_ids):
            raise DataError(f"{source}: two images have the same id; give each its own")
        video_of_image, video_names = _videos(content, images)
        annotated = np.array([image.get("annotated", True) for image in images], dtype=bool)

        known = {image_id: row for row, image_id in enumerate(image_ids.tolist())}
        classes = {class_id: row for row, class_id in enumerate(class_ids.tolist())}
        objects: list[tuple[int, int, Json]] = []
        lost = 0
        for annotation in content["annotations"]:
            row = known.get(annotation["image_id"])
            class_index = classes.get(annotation["category_id"])
            if row is None or class_index is None:
                lost += 1
            elif annotated[row]:
                objects.append((row, class_index, annotation))
        if lost:
            logger.warning(
                "%s: %d annotations name an image or a category that is not in the file; "
                "they are left out",
                source,
                lost,
            )
        annotations = [annotation for _, _, annotation in objects]
        condition_names, condition = _conditions(annotations)
        image = np.array([row for row, _, _ in objects], dtype=np.int64)
        box = box_array([annotation["bbox"] for annotation in annotations])
        if not (np.isfinite(box).all() and (box[:, 2:] >= 0).all()):
            raise ValueError("a bbox is not finite, or has a negative size")
        crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
        identity = integer_array([_identity(annotation) for annotation in annotations])
        frame_of_image = integer_array([_frame_id(record) for record in images])
        motion_iou = _motion_iou(annotations, image, box, identity, frame_of_image, video_of_image)
        unknown = int((np.isnan(motion_iou) & ~crowd).sum())
        if unknown:
            logger.warning(
                "%s: %d of %d objects have neither an instance_id nor a motion_iou, so nothing "
                "tells their speed: they count in AP50, but not as slow, medium or fast",
                source,
                unknown,
                len(objects),
            )
        return cls(
            source=source,
            class_names=class_names,
            class_ids=class_ids,
            image_ids=image_ids,
            annotated=annotated,
            video_of_image=video_of_image,
            frame_of_image=frame_of_image,
            shot_of_image=_shots(content, images, frame_of_image),
            video_names=video_names,
            image=image,
            box=box,
            class_index=np.array([index for _, index, _ in objects], dtype=np.int64),
            area=_given_or(annotations, "area", box[:, 2] * box[:, 3]),
            crowd=crowd,
            motion_iou=motion_iou,
            identity=identity,
            condition=condition,
            condition_names=condition_names,
            places=_places(content, images),
        )

    def only_classes(self, names: Sequence[str]) -> GroundTruth:
        """The same with some of its classes, in the order given; objects of others are left out.

        Args:
            names: classes; those that the dataset does not have are passed over.

        Raises:
            DataError: it has none of them.
        """
        index_of_name = {name: index for index, name in enumerate(self.class_names)}
        kept = [index_of_name[name] for name in dict.fromkeys(names) if name in index_of_name]
        if not kept:
            raise DataError(
                f"{self.source}: none of its categories ({_some(self.class_names)}) is one of the "
                f"classes to be measured ({_some(names)}); give the annotations of that dataset"
            )
        new_index = np.full(len(self.class_names), -1, dtype=np.int64)
        new_index[kept] = np.arange(len(kept))
        class_index = new_index[self.class_index]
        of_object = class_index >= 0
        return dataclasses.replace(
            self,
            class_names=[self.class_names[index] for index in kept],
            class_ids=self.class_ids[kept],
            image=self.image[of_object],
            box=self.box[of_object],
            class_index=class_index[of_object],
            area=self.area[of_object],
            crowd=self.crowd[of_object],
            motion_iou=self.motion_iou[of_object],
            identity=self.identity[of_object],
            condition=self.condition[of_object],
        )


def _videos(content: Json, images: Sequence[Json]) -> tuple[np.ndarray, list[str]]:
    """(I,) index of each image's video, and the videos' names, in the order of ``images``."""
    names = {video["id"]: video.get("name") for video in content.get("videos") or []}
    index_of: dict[tuple[str, Any], int] = {}
    video_names: list[str] = []
    video_of_image = np.zeros(len(images), dtype=np.int64)
    for row, image in enumerate(images):
        video = image.get("video_id")
        key = ("image", image["id"]) if video is None else ("video", video)
        if key not in index_of:
            index_of[key] = len(video_names)
            name = image.get("file_name") if video is None else names.get(video)
            video_names.append(str(name or f"{key[0]} {key[1]}"))
        video_of_image[row] = index_of[key]
    return video_of_image, video_names


def _shots(content: Json, images: Sequence[Json], frame_of_image: np.ndarray) -> np.ndarray:
    """(I,) which shot of its video each image is in, from 0."""
    first_frames = {}
    for video in content.get("videos") or []:
        shots = video.get("shots")
        if shots is not None:
            if not is_shots(shots):
                raise ValueError(f"shots must be first frames, rising from 0, not {shots!r}")
            first_frames[video["id"]] = shots
    shot_of_image = np.zeros(len(images), dtype=np.int64)
    for row, image in enumerate(images):
        shots = first_frames.get(image.get("video_id"))
        if shots is not None:
            shot_of_image[row] = max(shot_number(shots, int(frame_of_image[row])), 0)
    return shot_of_image


def _places(content: Json, images: Sequence[Json]) -> list[tuple[str, int] | None]:
    """Where each image is: its video's file, else its video's name, and the frame's number."""
    videos = {
        video["id"]: video.get("file") or video.get("name") or f"video {video['id']}"
        for video in content.get("videos") or []
    }
    places: list[tuple[str, int] | None] = []
    for image in images:
        in_file = split_frame_name(str(image.get("file_name", "")))
        number, video = _frame_id(image), image.get("video_id")
        if in_file is not None:
            places.append(in_file)
        elif video in videos and number >= 0:
            places.append((str(videos[video]), number))
        else:
            places.append(None)
    return places


def _motion_iou(
    annotations: Sequence[Json],
    image: np.ndarray,
    box: np.ndarray,
    identity: np.ndarray,
    frame_of_image: np.ndarray,
    video_of_image: np.ndarray,
) -> np.ndarray:
    """(M,) each object's own ``motion_iou``, else its track's; NaN where neither is known."""
    from_tracks = np.full(len(annotations), np.nan)
    # Without a frame's place in its video, none of its objects can be compared with others.
    rows = np.flatnonzero((identity >= 0) & (frame_of_image[image] >= 0))
    from_tracks[rows] = motion_iou_from_tracks(
        video_of_image[image[rows]],
        identity[rows],
        frame_of_image[image[rows]],
        xywh_to_xyxy(box[rows]),
    )
    motion_iou = _given_or(annotations, "motion_iou", from_tracks)
    if ((motion_iou < 0) | (motion_iou > 1)).any():
        raise ValueError("a motion_iou is not from 0 to 1")
    return motion_iou


def _conditions(annotations: Sequence[Json]) -> tuple[list[str], np.ndarray]:
    """The conditions that there are, and (M,) which of them each object is seen under."""
    given = [annotation.get("condition") for annotation in annotations]
    strange = [name for name in given if name is not None and not isinstance(name, str)]
    if strange:
        raise ValueError(f"condition must be a string, not {strange[0]!r}")
    names = sorted({name for name in given if name is not None})
    index_of = {name: index for index, name in enumerate(names)}
    indices = [-1 if name is None else index_of[name] for name in given]
    return names, np.array(indices, dtype=np.int64)


def _identity(annotation: Json) -> int:
    """Which object of its video this is; -1 where that is not known."""
    number = annotation.get("instance_id")
    if number is None:
        return -1
    if type(number) is not int or number > MAX_ID:
        raise ValueError(f"instance_id must be an integer of at most 64 bits, not {number!r}")
    # -1 is how many tools, Detectron2's dicts among them, say that it is unknown.
    return max(number, -1)


def _frame_id(image: Json) -> int:
    """The frame's number in its video; 0 for a still, -1 where it is not known."""
    if image.get("video_id") is None:
        return 0
    number = image.get("frame_id")
    if number is None:
        return -1
    if type(number) is not int or not 0 <= number <= MAX_ID:
        raise ValueError(f"frame_id must be an integer from 0 on, not {number!r}")
    return number


def _given_or(annotations: Sequence[Mapping[str, Any]], key: str, values: np.ndarray) -> np.ndarray:
    """(M,) float64: what each annotation has under ``key``, else its element of ``values``."""
    given = [annotation.get(key) for annotation in annotations]
    # NaN, which is not equal to itself, is how some tools write that there is none.
    rows = [row for row, value in enumerate(given) if value is not None and value == value]
    result = np.array(values, dtype=np.float64)
    numbers = number_array([given[row] for row in rows])
    if not np.isfinite(numbers).all():
        raise ValueError(f"{key} is not a finite number")
    result[rows] = numbers
    return result


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
