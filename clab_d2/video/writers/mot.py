"""MOTChallenge's text format."""

from __future__ import annotations

import os

from clab_d2.video.result import FrameResult
from clab_d2.video.writers.base import FileDetectionWriter, detections_of


class MOTWriter(FileDetectionWriter):
    """Writes a line for each detection, as MOTChallenge's results are::

        frame, id, left, top, width, height, score, class, -1, -1

    Frames and classes count from 1, the picture's top left pixel is (1, 1), and ``id`` is -1 for a
    box without a track.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)

    def _write(self, result: FrameResult) -> None:
        lines = []
        for found in detections_of(result):
            left, top, width, height = found.xywh
            track = -1 if found.track_id is None else found.track_id
            box = ",".join(f"{value:.2f}" for value in (left + 1, top + 1, width, height))
            start = f"{result.index + 1},{track},{box}"
            lines.append(f"{start},{found.score:.5f},{found.class_index + 1},-1,-1\n")
        self._file.append("".join(lines))
