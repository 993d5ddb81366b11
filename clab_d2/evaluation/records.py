"""Ground truth and detections as flat arrays, read from JSON and checked."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from clab_d2.errors import DataError
from clab_d2.evaluation.motion_iou import motion_iou_from_tracks

logger = logging.getLogger(__name__)

#: A result list is parsed in pieces of this size; a gap to cut at is looked for in the tail.
_BYTES_AT_A_TIME = 2**24
_TAIL = 2**16
_GAP = re.compile(rb"\}\s*,\s*\{")


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) boxes as corners."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


@dataclass(frozen=True)
class GroundTruth:
    """What there is to be found in a dataset; images and classes are numbered from 0.

    Attributes:
        source: the file it came from, for messages.
        class_names, class_ids: (C) of each class, in the JSON's order; ids are the JSON's.
        image_ids: (I,) the JSON's image ids, rising.
        annotated: (I,) bool; False: the truth about the frame is unknown, so it does not count.
        video_of_image: (I,) the frame's video, an index into ``video_names``.
        video_names: of each video; a still image is a video under its own file name.
        image, box, class_index, area, crowd, motion_iou: of each of the M objects in annotated
            frames: image index, (M, 4) xywh in pixels, class index, square pixels, bool, and
            overlap with itself in nearby frames.
    """

    source: str
    class_names: list[str]
    class_ids: np.ndarray
    image_ids: np.ndarray
    annotated: np.ndarray
    video_of_image: np.ndarray
    video_names: list[str]
    image: np.ndarray
    box: np.ndarray
    class_index: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    motion_iou: np.ndarray

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> GroundTruth:
        """Read a COCO or CocoVID JSON.

        Raises:
            DataError: the file is missing, no JSON, or lacks what it must have.
        """
        return cls.from_json(_load_json(path), str(path))

    @classmethod
    def from_json(cls, content: Any, source: str) -> GroundTruth:
        """Take the content of a COCO or CocoVID JSON; ``source`` names it in messages.

        An annotation's own ``motion_iou`` decides; where it has none, it is computed from its
        track (see :mod:`clab_d2.evaluation.motion_iou`).

        Raises:
            DataError: it lacks what it must have.
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
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{source}: an image, annotation or category is malformed ({what}); "
                "check the file, for instance with tools/check_dataset.py"
            ) from error

    @classmethod
    def _from_lists(cls, content: dict[str, Any], source: str) -> GroundTruth:
        images = sorted(content["images"], key=lambda image: image["id"])
        image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        if len(np.unique(image_ids)) < len(image_ids):
            raise DataError(f"{source}: two images have the same id; give each its own")
        categories = content["categories"]
        class_ids = np.array([category["id"] for category in categories], dtype=np.int64)
        if len(np.unique(class_ids)) < len(class_ids):
            raise DataError(f"{source}: two categories have the same id; give each its own")

        class_names = [str(category["name"]) for category in categories]
        if len(set(class_names)) < len(class_names):
            raise DataError(f"{source}: two categories have the same name; give each its own")

        names = {video["id"]: video.get("name") for video in content.get("videos") or []}
        video_index: dict[Any, int] = {}
        video_names: list[str] = []
        video_of_image = np.zeros(len(images), dtype=np.int64)
        for row, image in enumerate(images):
            video = image.get("video_id")
            key = ("image", image["id"]) if video is None else ("video", video)
            if key not in video_index:
                video_index[key] = len(video_names)
                name = image.get("file_name") if video is None else names.get(video)
                video_names.append(str(name or f"{key[0]} {key[1]}"))
            video_of_image[row] = video_index[key]
        annotated = np.array([image.get("annotated", True) for image in images], dtype=bool)
        frame_ids = np.array([image.get("frame_id") or 0 for image in images], dtype=np.int64)

        known = {image_id: row for row, image_id in enumerate(image_ids.tolist())}
        classes = {class_id: row for row, class_id in enumerate(class_ids.tolist())}
        objects = []
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
        image = np.array([row for row, _, _ in objects], dtype=np.int64)
        box = _boxes([annotation["bbox"] for _, _, annotation in objects])
        # Objects without a track number are each on their own.
        instance = np.array(
            [
                annotation["instance_id"] if annotation.get("instance_id") is not None else -1 - row
                for row, (_, _, annotation) in enumerate(objects)
            ],
            dtype=np.int64,
        )
        given = np.array(
            [
                np.nan if annotation.get("motion_iou") is None else annotation["motion_iou"]
                for _, _, annotation in objects
            ],
            dtype=np.float64,
        )
        from_tracks = motion_iou_from_tracks(
            video_of_image[image], instance, frame_ids[image], xywh_to_xyxy(box)
        )
        area = [
            annotation["area"] if annotation.get("area") is not None else width * height
            for (_, _, annotation), (width, height) in zip(
                objects, box[:, 2:].tolist(), strict=True
            )
        ]
        return cls(
            source=source,
            class_names=class_names,
            class_ids=class_ids,
            image_ids=image_ids,
            annotated=annotated,
            video_of_image=video_of_image,
            video_names=video_names,
            image=image,
            box=box,
            class_index=np.array([index for _, index, _ in objects], dtype=np.int64),
            area=np.array(area, dtype=np.float64),
            crowd=np.array([bool(a.get("iscrowd", 0)) for _, _, a in objects], dtype=bool),
            motion_iou=np.where(np.isnan(given), from_tracks, given),
        )


@dataclass(frozen=True)
class Columns:
    """Detections as they stand in a file: JSON ids, N of each.

    Attributes:
        image_id, category_id: (N,) int64.
        box: (N, 4) float64, xywh in pixels.
        score: (N,) float64.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    box: np.ndarray
    score: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[Columns]) -> Columns:
        """One after the other."""
        if not parts:
            return cls.from_records([], "")
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    @classmethod
    def from_records(
        cls, records: Sequence[dict[str, Any]], source: str, *, first_entry: int = 0
    ) -> Columns:
        """Take a COCO result list, or a part of it.

        Args:
            records: its entries.
            source: the file, for messages.
            first_entry: the number of the first of these entries in the file, for messages.

        Raises:
            DataError: an entry lacks a field or holds something else than numbers.
        """
        try:
            return cls(
                _exact_integers([record["image_id"] for record in records]),
                _exact_integers([record["category_id"] for record in records]),
                _boxes([record["bbox"] for record in records]),
                np.array([record["score"] for record in records], dtype=np.float64).reshape(-1),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            for index, record in enumerate(records, start=first_entry):
                _check_record(record, index, source)
            raise DataError(f"{source}: {error}") from error


@dataclass(frozen=True)
class Detections:
    """Detections in the annotated images of a dataset, by image.

    Attributes:
        image, class_index: (N,) indices into the ground truth's images and classes.
        box: (N, 4) float64, xywh in pixels.
        score: (N,) float64.
    """

    image: np.ndarray
    class_index: np.ndarray
    box: np.ndarray
    score: np.ndarray

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], truth: GroundTruth) -> Detections:
        """Read a COCO result list.

        Raises:
            DataError: the file is missing, no JSON, no such list, or of another dataset.
        """
        return cls.from_columns(load_columns(path), truth, str(path))

    @classmethod
    def from_columns(cls, columns: Columns, truth: GroundTruth, source: str) -> Detections:
        """Find the images and classes of ``truth``.

        Detections of unknown images or categories, and those that are not finite, are left out
        with a warning.

        Raises:
            DataError: there are detections, but none has a known image and category.
        """
        image, image_known = _look_up(columns.image_id, truth.image_ids)
        class_order = np.argsort(truth.class_ids)
        place, class_known = _look_up(columns.category_id, truth.class_ids[class_order])
        class_index = class_order[place] if len(class_order) else place
        finite = np.isfinite(columns.score) & np.isfinite(columns.box).all(axis=1)
        keep = image_known & class_known & finite
        for what, known, ids in (
            ("images", image_known, columns.image_id),
            ("categories", class_known, columns.category_id),
        ):
            if not known.all():
                lost = np.unique(ids[~known])
                message = (
                    f"{source}: {int((~known).sum())} of {len(known)} detections are of {what} "
                    f"that {truth.source} does not have (ids {_some(lost)})"
                )
                if not known.any():
                    raise DataError(f"{message}; give the annotations they were made for")
                logger.warning("%s; they are left out", message)
        if not finite.all():
            logger.warning(
                "%s: %d detections have a score or box that is not finite; they are left out",
                source,
                int((~finite).sum()),
            )
        if len(truth.annotated):
            keep &= truth.annotated[image]
        # Sorted by image, so that files in any order of images give the same; else as given.
        if keep.all() and (image[1:] >= image[:-1]).all():
            return cls(image, class_index, columns.box, columns.score)
        rows = np.flatnonzero(keep)
        rows = rows[np.argsort(image[rows], kind="stable")]
        return cls(image[rows], class_index[rows], columns.box[rows], columns.score[rows])


def load_columns(path: str | os.PathLike[str]) -> Columns:
    """Read a COCO result list piece by piece, so that memory goes to arrays and not to dicts.

    Raises:
        DataError: the file is missing, no JSON or no such list.
    """
    try:
        parts, first_entry = [], 0
        with _no_garbage_collection():
            for records in _pieces(path):
                parts.append(Columns.from_records(records, str(path), first_entry=first_entry))
                first_entry += len(records)
    except _NoPieces:
        records = _load_json(path)
        if not isinstance(records, list):
            raise DataError(
                f'{path}: not a COCO result list; expected [{{"image_id": ...}}, ...]'
            ) from None
        parts = [Columns.from_records(records, str(path))]
    return Columns.join(parts)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Don't look for cycles among millions of fresh dicts: parsing takes half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _NoPieces(Exception):
    """A file is not a list of objects that can be cut between two of them."""


def _pieces(path: str | os.PathLike[str]) -> Iterator[list[Any]]:
    """Parse a file that holds a list of objects, some at a time.

    Raises:
        _NoPieces: it cannot be done: parse the file as a whole, which also tells what is wrong.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_BYTES_AT_A_TIME).lstrip()
            if not text.startswith(b"["):
                raise _NoPieces
            text = text[1:]
            while block := file.read(_BYTES_AT_A_TIME):
                text += block
                # What looks like the gap between two entries may lie within one (in a string, or
                # in a list of objects): only a true one leaves both sides whole.
                tail = max(0, len(text) - _TAIL)
                gaps = [
                    (tail + m.start() + 1, tail + m.end() - 1) for m in _GAP.finditer(text[tail:])
                ]
                records, text = _cut(text, gaps[:-4:-1])
                yield records
            try:
                yield json.loads(b"[" + text)
            except ValueError:
                raise _NoPieces from None
    except OSError:
        raise _NoPieces from None


def _cut(text: bytes, gaps: list[tuple[int, int]]) -> tuple[list[Any], bytes]:
    """Parse up to the first of ``gaps`` (end of an entry, start of the next) that is a true one."""
    for end, start in gaps:
        with contextlib.suppress(ValueError):
            return json.loads(b"[" + text[:end] + b"]"), text[start:]
    raise _NoPieces


def _load_json(path: str | os.PathLike[str]) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); is it truncated?") from error


def _boxes(boxes: list[Any]) -> np.ndarray:
    array = np.array(boxes, dtype=np.float64)
    if array.size == 0 and not boxes:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError("bbox must be four numbers: x, y, width, height")
    return array


def _exact_integers(values: list[Any]) -> np.ndarray:
    array = np.array(values)
    if len(values) == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError("ids must be integers")
    return array.astype(np.int64)


def _check_record(record: Any, index: int, source: str) -> None:
    """Raise what is wrong with one entry of a result list, if anything is."""
    where = f"{source}: entry {index}"
    if not isinstance(record, dict):
        raise DataError(f"{where} is not an object with image_id, category_id, bbox and score")
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in record:
            raise DataError(
                f"{where} has no {key}; a COCO result has image_id, category_id, bbox and score"
            )
    for key in ("image_id", "category_id"):
        if not isinstance(record[key], int):
            raise DataError(f"{where}: {key} must be an integer, not {record[key]!r}")
    numbers = (int, float)
    box = record["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, numbers) for v in box):
        raise DataError(f"{where}: bbox must be [x, y, width, height], not {box!r}")
    if not isinstance(record["score"], numbers):
        raise DataError(f"{where}: score must be a number, not {record['score']!r}")


def _look_up(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value stands in the sorted array ``known``, and whether it does."""
    if len(known) == 0:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return place, known[place] == values


def _some(ids: np.ndarray, most: int = 5) -> str:
    return ", ".join(map(str, ids[:most].tolist())) + (", ..." if len(ids) > most else "")
