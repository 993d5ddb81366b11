"""A plug-in (``--import``): detectors that only note, and a video that kills who reads it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from stub_detector import NotingModel, make_cfg

from clab_d2.video import VideoDetector, many_videos

_open_video = many_videos.open_video


def open_video(path: Path) -> Any:
    if path.stem == "deadly":
        os._exit(1)
    return _open_video(path)


def from_file(path: str, options: Any) -> VideoDetector:
    return VideoDetector(make_cfg(), NotingModel(), ["thing"])


many_videos.open_video = open_video
VideoDetector.from_file = from_file
