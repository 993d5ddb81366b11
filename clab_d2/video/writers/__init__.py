"""Frames and detections out, written as they come.

:func:`open_writer` tells from a name how frames are to be written, :func:`open_detections` writes
detections in a named format (docs/detect.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from clab_d2.errors import ConfigError
from clab_d2.video.writers.base import DetectionWriter
from clab_d2.video.writers.coco import COCOWriter
from clab_d2.video.writers.csv_table import CSVWriter
from clab_d2.video.writers.cvat import CVATWriter
from clab_d2.video.writers.frames import FrameFolderWriter, FrameWriter, VideoWriter, open_writer
from clab_d2.video.writers.labelme import LabelMeWriter
from clab_d2.video.writers.mot import MOTWriter
from clab_d2.video.writers.yolo import YOLOWriter

__all__ = [
    "FORMATS",
    "COCOWriter",
    "CSVWriter",
    "CVATWriter",
    "DetectionFormat",
    "DetectionWriter",
    "FrameFolderWriter",
    "FrameWriter",
    "LabelMeWriter",
    "MOTWriter",
    "VideoWriter",
    "YOLOWriter",
    "open_detections",
    "open_writer",
]


class DetectionFormat(NamedTuple):
    """A format of detections.

    Attributes:
        suffix: of its file; empty where it is a folder with a file for each frame.
        summary: what it is, in a few words.
        open: makes the writer, of the path, the video's name, class names and score threshold.
    """

    suffix: str
    summary: str
    open: Callable[[Any, str, Sequence[str], float], DetectionWriter]


#: By name. COCO, CSV and MOT have a column for the score and hold every detection; CVAT, LabelMe
#: and YOLO are annotations, and hold those of at least the score threshold.
FORMATS: Mapping[str, DetectionFormat] = MappingProxyType({
    "coco": DetectionFormat(
        ".json", "a COCO result list, for evaluate.py", lambda path, *_: COCOWriter(path)
    ),
    "csv": DetectionFormat(
        ".csv", "a table, a line for each detection", lambda path, *_: CSVWriter(path)
    ),
    "mot": DetectionFormat(".txt", "MOTChallenge's text", lambda path, *_: MOTWriter(path)),
    "cvat": DetectionFormat(".xml", "CVAT for video 1.1, to correct in CVAT", CVATWriter),
    "labelme": DetectionFormat(
        "", "a folder of pictures with LabelMe's JSON", lambda p, _, __, s: LabelMeWriter(p, s)
    ),
    "yolo": DetectionFormat(
        "", "a folder in YOLO's layout", lambda p, _, names, s: YOLOWriter(p, names, s)
    ),
})  # fmt: skip


def open_detections(
    path: str | os.PathLike[str],
    format_name: str,
    video: str,
    class_names: Sequence[str],
    score_threshold: float = 0.5,
) -> DetectionWriter:
    """A writer of detections.

    Args:
        path: the file or folder to write.
        format_name: one of ``FORMATS``.
        video: what the video is called.
        class_names: by class number.
        score_threshold: of the formats that are annotations, see ``FORMATS``.

    Raises:
        ConfigError: there is no such format.
        DataError: nothing can be written there.
    """
    if format_name not in FORMATS:
        raise ConfigError(f"no format {format_name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[format_name].open(path, video, class_names, score_threshold)
