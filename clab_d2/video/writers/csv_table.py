"""A table for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
import os

from clab_d2.video.result import FrameResult
from clab_d2.video.writers.base import FileDetectionWriter, detections_of

COLUMNS = (
    "video", "frame", "timestamp", "track_id", "class_id", "class", "score", "x1", "y1", "x2", "y2",
)  # fmt: skip


class CSVWriter(FileDetectionWriter):
    """Writes a line for each detection, under a line of column names.

    ``frame`` and ``class_id`` count from 0, ``timestamp`` is in seconds, the corners are in pixels
    of the frame. A cell is empty where nothing is known: the timestamp of a picture, the track of a
    box without one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, _lines([COLUMNS]))

    def _write(self, result: FrameResult) -> None:
        time = "" if result.timestamp is None else f"{result.timestamp:.4f}"
        rows = [
            (
                result.video,
                result.index,
                time,
                "" if found.track_id is None else found.track_id,
                found.class_index,
                found.class_name,
                f"{found.score:.5f}",
                *(f"{value:.2f}" for value in found.box),
            )
            for found in detections_of(result)
        ]
        self._file.append(_lines(rows))


def _lines(rows: list[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
