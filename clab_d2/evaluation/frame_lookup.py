"""Images of a dataset by video and frame number, and categories by name.

Detections in a video are written without knowing any dataset: the video's path, the frame's number,
the class's name. Which image and category of the truth that is, is found out here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from clab_d2.data.video_frames import VIDEO_SUFFIXES
from clab_d2.errors import DataError
from clab_d2.evaluation.ground_truth import GroundTruth

logger = logging.getLogger(__name__)

_NONE = -1  # an id that no image or category of a dataset has


class FrameLookup:
    """Finds what a detection of ``tools/demo.py`` is of.

    A video of the truth is known by the path of its file or by its name. One is the same as that of
    a detection if the shorter of the two is the end of the longer, part by part, without a video's
    suffix: ``val/v1`` is ``data/VID/val/v1``, ``bikes.mp4`` is ``bikes``.

    Args:
        truth: the dataset.
    """

    def __init__(self, truth: GroundTruth) -> None:
        self._truth = truth
        self._image_of: dict[str, dict[int, int]] = {}
        for image_id, place in zip(truth.image_ids.tolist(), truth.places, strict=True):
            if place is not None:
                self._image_of.setdefault(place[0], {})[place[1]] = image_id
        self._parts = {name: _parts(name) for name in self._image_of}
        self._category_of = dict(zip(truth.class_names, truth.class_ids.tolist(), strict=True))
        self._found: dict[str, dict[int, int]] = {}
        self._lost = 0

    def place(self, records: Sequence[dict[str, Any]], source: str) -> Sequence[dict[str, Any]]:
        """The records with the truth's ids; those that name no video and frame as they are.

        A frame that the truth does not have is left out, as it is where only some frames of a video
        are annotated.

        Raises:
            DataError: a video, or a class, that the truth does not have, or has several of.
        """
        placed = []
        for record in records:
            number = record.get("frame_id") if isinstance(record, dict) else None
            if type(number) is not int or "video" not in record:
                placed.append(record)
                continue
            image_id = self._frames_of(str(record["video"]), source).get(number)
            if image_id is None:
                self._lost += 1
                continue
            category_id = record.get("category_id")
            if "category" in record:
                category_id = self._category_of.get(str(record["category"]), _NONE)
            placed.append({**record, "image_id": image_id, "category_id": category_id})
        return placed

    def tell(self, source: str) -> None:
        """Log what was left out."""
        if self._lost:
            logger.warning(
                "%s: %d detections are in frames that %s does not have; they are left out",
                source,
                self._lost,
                self._truth.source,
            )

    def _frames_of(self, video: str, source: str) -> dict[int, int]:
        """Image id by frame number of the truth's video that ``video`` names."""
        if video in self._found:
            return self._found[video]
        parts = _parts(video)
        names = [name for name, known in self._parts.items() if _is_same(parts, known)]
        # "train/v1" fits better than "v1" if both are there.
        longest = max((len(self._parts[name]) for name in names), default=0)
        names = [name for name in names if len(self._parts[name]) == longest]
        if len(names) != 1:
            some = ", ".join(sorted(names or self._parts)[:5]) or "none with frame numbers"
            what = "more than one video that this may be" if names else "no such video"
            raise DataError(
                f"{source}: detections in {video!r}, and {self._truth.source} has {what} ({some}); "
                "give the annotations of that video, or rename one of the two"
            )
        self._found[video] = self._image_of[names[0]]
        return self._found[video]


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.suffix.lower() in VIDEO_SUFFIXES:
        path = path.with_suffix("")
    return tuple(part for part in path.parts if part not in ("/", "."))


def _is_same(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    length = min(len(one), len(other))
    return length > 0 and one[-length:] == other[-length:]
