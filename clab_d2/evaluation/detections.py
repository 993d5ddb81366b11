"""Detections as flat arrays, read from a COCO result list and checked."""

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
from clab_d2.evaluation.frame_lookup import FrameLookup
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.evaluation.json_arrays import MAX_ID, box_array, integer_array, number_array
from clab_d2.io import read_json, refuse_special_file

logger = logging.getLogger(__name__)

#: A result list is parsed in pieces of this size; a gap to cut at is looked for in the tail.
_BYTES_AT_A_TIME = 2**24
_TAIL = 2**16
_GAP = re.compile(rb"\}\s*,\s*\{")


@dataclass(frozen=True)
class COCOResults:
    """Detections as they stand in a file: JSON ids, N of each.

    Attributes:
        image_id, category_id: (N,) int64.
        box: (N, 4) float64, xywh in pixels.
        score: (N,) float64.
        track_id: (N,) int64, which track of its video it is in, -1 for none (where an entry has no
            ``track_id``, or a negative one). By default there are none.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    box: np.ndarray
    score: np.ndarray
    track_id: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        _no_tracks_by_default(self)

    @classmethod
    def join(cls, parts: Sequence[COCOResults]) -> COCOResults:
        """One after the other."""
        if not parts:
            return cls.from_records([], "")
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def select(self, rows: np.ndarray) -> COCOResults:
        """Those in ``rows``, (N,) bool."""
        return COCOResults(*(getattr(self, f.name)[rows] for f in fields(self)))

    @classmethod
    def from_records(
        cls, records: Sequence[dict[str, Any]], source: str, *, first_entry: int = 0
    ) -> COCOResults:
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
                integer_array([record["image_id"] for record in records]),
                integer_array([record["category_id"] for record in records]),
                box_array([record["bbox"] for record in records]),
                number_array([record["score"] for record in records]),
                np.maximum(integer_array([record.get("track_id", -1) for record in records]), -1),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
        track_id: (N,) int64, -1 for none; by default there are none.
    """

    image: np.ndarray
    class_index: np.ndarray
    box: np.ndarray
    score: np.ndarray
    track_id: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        _no_tracks_by_default(self)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], truth: GroundTruth) -> Detections:
        """Read a COCO result list, of a dataset or of a video (``tools/demo.py --json``).

        Of a video, images are found by video and frame number, categories by name: see
        :class:`clab_d2.evaluation.frame_lookup.FrameLookup`.

        Raises:
            DataError: the file is missing, no JSON, no such list, or of another dataset.
        """
        return cls.from_results(load_results(path, truth), truth, str(path))

    @classmethod
    def from_results(cls, results: COCOResults, truth: GroundTruth, source: str) -> Detections:
        """Find the images and classes of ``truth``.

        Detections of unknown images or categories, and those that are not finite, are left out
        with a warning.

        Raises:
            DataError: there are detections, but none has a known image and category.
        """
        image, image_known = _look_up(results.image_id, truth.image_ids)
        class_order = np.argsort(truth.class_ids)
        place, class_known = _look_up(results.category_id, truth.class_ids[class_order])
        class_index = class_order[place] if len(class_order) else place
        finite = np.isfinite(results.score) & np.isfinite(results.box).all(axis=1)
        keep = image_known & class_known & finite
        for what, known, ids in (
            ("images", image_known, results.image_id),
            ("categories", class_known, results.category_id),
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
            return cls(image, class_index, results.box, results.score, results.track_id)
        rows = np.flatnonzero(keep)
        rows = rows[np.argsort(image[rows], kind="stable")]
        return cls(
            image[rows],
            class_index[rows],
            results.box[rows],
            results.score[rows],
            results.track_id[rows],
        )


def _no_tracks_by_default(detections: COCOResults | Detections) -> None:
    if detections.track_id is None:
        object.__setattr__(
            detections, "track_id", np.full(len(detections.score), -1, dtype=np.int64)
        )


def load_results(path: str | os.PathLike[str], truth: GroundTruth | None = None) -> COCOResults:
    """Read a COCO result list piece by piece, so that memory goes to arrays and not to dicts.

    Args:
        path: the file, or a folder of such files, at any depth, which are taken together: those
            that ``tools/detect_videos.py`` writes, one a video.
        truth: gives their ids to entries that name a video and a frame of it.

    Raises:
        DataError: a file is missing, no JSON or no such list, or names an unknown video.
    """
    if not Path(path).is_dir():
        return _load_file(path, truth)
    whole = (file for file in Path(path).rglob("*.json") if ".partial" not in file.suffixes)
    files = sorted(file for file in whole if not file.is_dir())
    if not files:
        raise DataError(f"{path}: the folder holds no .json; name a folder of COCO result lists")
    return COCOResults.join([_load_file(file, truth) for file in files])


def _load_file(path: str | os.PathLike[str], truth: GroundTruth | None) -> COCOResults:
    refuse_special_file(path)
    source = str(path)
    lookup = FrameLookup(truth) if truth is not None else None

    def take(records: Sequence[dict[str, Any]], first_entry: int = 0) -> COCOResults:
        if lookup is not None:
            records = lookup.place(records, source)
        return COCOResults.from_records(records, source, first_entry=first_entry)

    try:
        parts, first_entry = [], 0
        with _no_garbage_collection():
            for records in _pieces(path):
                parts.append(take(records, first_entry))
                first_entry += len(records)
    except _NoPieces:
        records = read_json(path)
        if not isinstance(records, list):
            raise DataError(
                f'{path}: not a COCO result list; expected [{{"image_id": ...}}, ...]'
            ) from None
        parts = [take(records)]
    if lookup is not None:
        lookup.tell(source)
    return COCOResults.join(parts)


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
            except (ValueError, RecursionError):
                raise _NoPieces from None
    except OSError:
        raise _NoPieces from None


def _cut(text: bytes, gaps: list[tuple[int, int]]) -> tuple[list[Any], bytes]:
    """Parse up to the first of ``gaps`` (end of an entry, start of the next) that is a true one."""
    for end, start in gaps:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(b"[" + text[:end] + b"]"), text[start:]
    raise _NoPieces


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
    for key in ("image_id", "category_id", "track_id"):
        value = record.get(key, -1)
        if type(value) is not int or not -MAX_ID <= value <= MAX_ID:
            raise DataError(
                f"{where}: {key} must be an integer of at most 64 bits, not {_short(value)}"
            )
    box = record["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise DataError(f"{where}: bbox must be [x, y, width, height], not {_short(box)}")
    if not _is_number(record["score"]):
        raise DataError(f"{where}: score must be a number, not {_short(record['score'])}")


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold (NaN and infinity are)."""
    try:
        return type(value) in (int, float) and isinstance(float(value), float)
    except OverflowError:
        return False


def _short(value: Any, most: int = 60) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or an integer of too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def _look_up(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value stands in the sorted array ``known``, and whether it does."""
    if len(known) == 0:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return place, known[place] == values


def _some(ids: np.ndarray, most: int = 5) -> str:
    return ", ".join(map(str, ids[:most].tolist())) + (", ..." if len(ids) > most else "")
