"""Detection in one video within limits, and drawings of what was found at any threshold."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.structures import Instances

from clab_d2.errors import DataError
from clab_d2.video import (
    VideoDetector,
    VideoSource,
    VideoWriter,
    open_detections,
    open_video,
)
from clab_d2.visualization import DrawStyle, draw_detections, readable_scale

# Speeds are those of the last seconds: the first frames also fill the reference memory.
_SPEED_OVER_SECONDS = 5.0


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask of the machine.

    Attributes:
        megabytes: of a video file.
        seconds: of a video.
        pixels: height times width of its frames.
    """

    megabytes: float = 200
    seconds: float = 120
    pixels: int = 4096 * 2304

    def check_file(self, path: str | os.PathLike[str]) -> None:
        """Raise DataError for a file that is too large, before it is opened."""
        size = os.path.getsize(path) / 1e6
        if size > self.megabytes:
            raise DataError(
                f"the video has {size:.0f} MB; this page takes up to {self.megabytes:g} MB"
            )

    def check_video(self, source: VideoSource) -> None:
        """Raise DataError for a video that is too long or too large."""
        assert source.num_frames is not None and source.height and source.width
        seconds = source.num_frames / source.fps
        if seconds > self.seconds:
            raise DataError(
                f"the video lasts {seconds:.1f} s; this page takes up to {self.seconds:g} s: "
                "cut it, or use tools/demo.py"
            )
        if source.height * source.width > self.pixels:
            raise DataError(
                f"the video's frames have {source.width}x{source.height} pixels; this page takes "
                f"up to {self.pixels / 1e6:.1f} million: make them smaller"
            )


@dataclass(frozen=True)
class Progress:
    """How far detection is.

    Attributes:
        done, total: frames.
        frames_per_second: of the last seconds; None before the second frame.
    """

    done: int
    total: int
    frames_per_second: float | None

    @property
    def sentence(self) -> str:
        """For a person."""
        text = f"frame {self.done} of {self.total}"
        if self.frames_per_second is None:
            return text
        left = (self.total - self.done) / self.frames_per_second
        return f"{text}, {self.frames_per_second:.1f} frames/s, {left:.0f} s left"


@dataclass
class VideoJob:
    """One model's detections in one video; the frames themselves are not held.

    Attributes:
        model_name: what the page calls the model.
        video: the file.
        folder: where results are written.
        class_names: by class number.
        fps: frames per second.
        instances: of each frame detected so far, whatever their score.
        seconds: that detection took.
        tracked: whether the detections have the numbers of tracks.
    """

    model_name: str
    video: Path
    folder: Path
    class_names: list[str] = field(default_factory=list)
    fps: float = 25.0
    instances: list[Instances] = field(default_factory=list)
    seconds: float = 0.0
    tracked: bool = False

    @property
    def json_file(self) -> Path:
        """All detections as a COCO result list."""
        return self.folder / f"{self._stem}.json"

    @property
    def csv_file(self) -> Path:
        """All detections as a table."""
        return self.folder / f"{self._stem}.csv"

    @property
    def _stem(self) -> str:
        return f"{self.video.stem[:60]}_{self.model_name}"

    def detect(
        self, detector: VideoDetector, limits: Limits, track: bool = False
    ) -> Iterator[Progress]:
        """Detect in the whole video and write JSON and CSV; progress after each frame.

        A generator that is closed before its end stops detection; what it wrote is deleted.

        Args:
            detector: the model.
            limits: of the video.
            track: give objects numbers that they keep.

        Raises:
            ConfigError: tracks are asked for, and their library is not installed.
            DataError: the video is no video, or beyond the limits.
        """
        limits.check_file(self.video)
        self.class_names = list(detector.class_names)
        self.instances = []
        self.tracked = track
        started = time.perf_counter()
        try:
            with open_video(self.video) as source, contextlib.ExitStack() as stack:
                limits.check_video(source)
                self.fps = source.fps
                writers = [
                    stack.enter_context(open_detections(path, kind, self.video.name,
                                                        self.class_names))
                    for path, kind in ((self.json_file, "coco"), (self.csv_file, "csv"))
                ]  # fmt: skip
                detection = detector.detect(source, track=track)
                results = stack.enter_context(contextlib.closing(detection))
                times: list[float] = []
                for result in results:
                    for writer in writers:
                        writer.write(result)
                    self.instances.append(result.instances)
                    now = time.perf_counter()
                    times = [t for t in times if now - t < _SPEED_OVER_SECONDS] + [now]
                    speed = (len(times) - 1) / (now - times[0]) if len(times) > 1 else None
                    yield Progress(len(self.instances), source.num_frames or 0, speed)
        except BaseException:
            for path in (self.json_file, self.csv_file):
                path.unlink(missing_ok=True)
                path.with_name(f"{path.stem}.partial{path.suffix}").unlink(missing_ok=True)
            raise
        self.seconds = time.perf_counter() - started

    def draw(self, score_threshold: float) -> Path:
        """Draw the detections of at least a score, without detecting again.

        Colours are those of tracks where there are tracks, else of classes.

        Returns:
            An MP4 that browsers play. Its name tells the threshold, so that none shows an old one.
        """
        path = self.folder / f"{self._stem}_{round(100 * score_threshold):02d}.mp4"
        for old in self.folder.glob(f"{self._stem}_*.mp4"):
            old.unlink()
        style = DrawStyle(colour_by="track" if self.tracked else "class")
        with open_video(self.video) as source, VideoWriter(path, source.fps) as writer:
            shown: np.ndarray | None = None
            for index, instances in enumerate(self.instances):
                # As in detection: a damaged frame shows the last good one again.
                with contextlib.suppress(DataError):
                    shown = source.read(index)
                if shown is None:
                    shown = np.zeros((source.height or 480, source.width or 640, 3), np.uint8)
                scale = readable_scale(*shown.shape[:2])
                drawn = draw_detections(
                    shown, instances, self.class_names, score_threshold, scale, style
                )
                writer.write(drawn)
        return path
