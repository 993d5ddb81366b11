"""A COCO result list."""

from __future__ import annotations

import json
import os

from clab_d2.video.result import FrameResult
from clab_d2.video.writers.base import FileDetectionWriter, detections_of


class COCOWriter(FileDetectionWriter):
    """Writes a COCO result list, which ``tools/evaluate.py`` and pycocotools read::

        [{"image_id": 13, "category_id": 4, "bbox": [x, y, width, height], "score": 0.9,
          "video": "clip.mp4", "frame_id": 12, "category": "bus", "track_id": 3}, ...]

    ``bbox`` is in pixels of the frame; ``frame_id`` counts from 0; ``track_id`` is there where the
    box has one. ``image_id`` is ``frame_id`` + 1 and ``category_id`` the class number + 1, which
    our converters give to a dataset of this clip alone. Of any other, evaluate.py finds the image
    by video and frame number, and the category by name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "[", "]\n")
        self._is_first = True

    def _write(self, result: FrameResult) -> None:
        lines = []
        for found in detections_of(result):
            record = {
                "image_id": result.index + 1,
                "category_id": found.class_index + 1,
                "bbox": [round(value, 3) for value in found.xywh],
                "score": round(found.score, 5),
                "video": result.video,
                "frame_id": result.index,
                "category": found.class_name,
            }
            if found.track_id is not None:
                record["track_id"] = found.track_id
            lines.append(json.dumps(record))
        if lines:
            start = "\n" if self._is_first else ",\n"
            self._is_first = False
            self._file.append(start + ",\n".join(lines), "\n]\n")
