"""What all writers of detections share."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clab_d2.errors import DataError
from clab_d2.video.result import FrameResult
from clab_d2.video.writers.files import GrowingFile, VideoOutput, tell_of_partial


class Detection(NamedTuple):
    """One detection as plain values.

    Attributes:
        box: x1 y1 x2 y2 in pixels of the frame.
        class_index: from 0.
        class_name: its name.
        score: from 0 to 1.
        track_id: None for one without a track.
    """

    box: tuple[float, float, float, float]
    class_index: int
    class_name: str
    score: float
    track_id: int | None

    @property
    def xywh(self) -> tuple[float, float, float, float]:
        """Left, top, width, height."""
        x1, y1, x2, y2 = self.box
        return x1, y1, x2 - x1, y2 - y1


def detections_of(result: FrameResult, score_threshold: float = 0) -> Iterator[Detection]:
    """The detections of a frame one by one, of at least ``score_threshold``."""
    found = result.instances
    tracks = result.track_ids or [None] * len(found)
    rows = zip(
        found.pred_boxes.tensor.tolist(),
        found.pred_classes.tolist(),
        found.scores.tolist(),
        tracks,
        strict=True,
    )
    for box, index, score, track in rows:
        if score >= score_threshold:
            yield Detection(tuple(box), index, result.class_names[index], score, track)


class DetectionWriter(VideoOutput):
    """Writes the detections of one video."""

    def write(self, result: FrameResult) -> None:
        """Add a frame.

        Raises:
            DataError: it cannot be written, as on a full disk.
        """
        self._write(result)
        self.num_frames += 1

    @abstractmethod
    def _write(self, result: FrameResult) -> None: ...


class FileDetectionWriter(DetectionWriter):
    """A writer of one text file."""

    def __init__(self, path: str | os.PathLike[str], head: str = "", tail: str = "") -> None:
        self.path = Path(path)
        self._file = GrowingFile(path, head, tail)

    def close(self) -> None:
        self._file.commit()

    def leave(self) -> None:
        self._file.leave(self.num_frames)


class FolderDetectionWriter(DetectionWriter):
    """A writer of a file for each frame.

    Raises:
        DataError: the folder cannot be made, or is not empty: two videos would be mixed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be made a folder ({error.strerror})") from None
        if any(self.path.iterdir()):
            raise DataError(f"{self.path}: is not empty; name a new folder, or empty it")

    def close(self) -> None:
        """Nothing is left to do."""

    def leave(self) -> None:
        if self.num_frames:
            tell_of_partial(self.path, self.num_frames)
