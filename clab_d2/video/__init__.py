"""Video in and out: frames of a file, a folder or a camera in, detections and an MP4 out.

``sources`` gives frames by number from any of these, ``detector`` detects in them as they come and
gives for each frame a ``result``,
``writers`` writes what is drawn and what was detected.
"""

from clab_d2.video.detector import VideoDetector
from clab_d2.video.result import FrameResult
from clab_d2.video.sources import (
    CameraSource,
    FileSource,
    FolderSource,
    SequenceSource,
    Source,
    StreamSource,
    UrlSource,
    Videos,
    VideoSource,
    each_video,
    find_videos,
    open_video,
)
from clab_d2.video.writers import (
    FORMATS,
    DetectionWriter,
    FrameFolderWriter,
    FrameWriter,
    VideoWriter,
    open_detections,
    open_writer,
)

__all__ = [
    "FORMATS",
    "CameraSource",
    "DetectionWriter",
    "FileSource",
    "FolderSource",
    "FrameFolderWriter",
    "FrameResult",
    "FrameWriter",
    "SequenceSource",
    "Source",
    "StreamSource",
    "UrlSource",
    "VideoDetector",
    "VideoSource",
    "VideoWriter",
    "Videos",
    "each_video",
    "find_videos",
    "open_detections",
    "open_video",
    "open_writer",
]
