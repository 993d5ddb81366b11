"""YOLO's text files, one a frame."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from clab_d2.io import atomic_write
from clab_d2.video.result import FrameResult
from clab_d2.video.writers.base import FolderDetectionWriter, detections_of
from clab_d2.video.writers.files import write_errors
from clab_d2.video.writers.labelme import write_picture


class YOLOWriter(FolderDetectionWriter):
    """Writes YOLO's layout: ``images/000000.jpg``, ``labels/000000.txt`` and ``data.yaml``.

    A line is ``class x y width height``: the class from 0, the box's centre and size as parts of
    the frame's, cut off at its border. There is no place for scores and tracks.

    Args:
        path: a new or empty folder.
        class_names: by class number.
        score_threshold: detections below it are left out.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        class_names: Sequence[str],
        score_threshold: float = 0.5,
    ) -> None:
        super().__init__(path)
        self._score_threshold = score_threshold
        with write_errors(self.path):
            for folder in ("images", "labels"):
                (self.path / folder).mkdir()
            with atomic_write(self.path / "data.yaml") as file:
                file.write("path: .\ntrain: images\nval: images\nnames:\n")
                # A JSON string is a YAML string, whatever is in it.
                file.writelines(
                    f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(class_names)
                )

    def _write(self, result: FrameResult) -> None:
        height, width = result.image.shape[:2]
        write_picture(self.path / "images" / f"{result.index:06d}.jpg", result)
        lines = []
        for found in detections_of(result, self._score_threshold):
            x1, x2 = (min(max(value / width, 0.0), 1.0) for value in found.box[::2])
            y1, y2 = (min(max(value / height, 0.0), 1.0) for value in found.box[1::2])
            numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            lines.append(f"{found.class_index} {' '.join(f'{n:.6f}' for n in numbers)}\n")
        with (
            write_errors(self.path),
            atomic_write(self.path / "labels" / f"{result.index:06d}.txt") as file,
        ):
            file.writelines(lines)
