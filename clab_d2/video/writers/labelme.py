"""LabelMe's JSON files, one a frame."""

from __future__ import annotations

import os
from pathlib import Path

import cv2

from clab_d2.errors import DataError
from clab_d2.io import write_json
from clab_d2.video.result import FrameResult
from clab_d2.video.writers.base import FolderDetectionWriter, detections_of
from clab_d2.video.writers.files import write_errors


class LabelMeWriter(FolderDetectionWriter):
    """Writes ``000000.jpg`` and ``000000.json`` and so on: open the folder in LabelMe.

    A track's number is the shape's ``group_id``.

    Args:
        path: a new or empty folder.
        score_threshold: detections below it are left out.
    """

    def __init__(self, path: str | os.PathLike[str], score_threshold: float = 0.5) -> None:
        super().__init__(path)
        self._score_threshold = score_threshold

    def _write(self, result: FrameResult) -> None:
        height, width = result.image.shape[:2]
        picture = self.path / f"{result.index:06d}.jpg"
        write_picture(picture, result)
        shapes = [
            {
                "label": found.class_name,
                "points": [
                    [round(v, 2) for v in found.box[:2]],
                    [round(v, 2) for v in found.box[2:]],
                ],
                "group_id": found.track_id,
                "description": f"score {found.score:.3f}",
                "shape_type": "rectangle",
                "flags": {},
                "mask": None,
            }
            for found in detections_of(result, self._score_threshold)
        ]
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": picture.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        with write_errors(self.path):
            write_json(picture.with_suffix(".json"), content, indent=2)


def write_picture(path: Path, result: FrameResult, quality: int = 95) -> None:
    """Write a frame as a JPEG.

    Raises:
        DataError: it cannot be written.
    """
    bgr = cv2.cvtColor(result.image, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, quality]):
        raise DataError(f"{path}: cannot be written; check the folder's rights and free space")
