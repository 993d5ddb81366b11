"""Detection in many videos, a result file each: what is done with each, and one after the other."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from clab_d2.engine.command_line import one_line
from clab_d2.engine.plugins import import_plugins
from clab_d2.video.detector import Mode, VideoDetector
from clab_d2.video.shown_count import ShownCount
from clab_d2.video.sources import open_video
from clab_d2.video.writers import open_detections, open_writer
from clab_d2.visualization import DrawStyle, readable_scale

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DetectionJob:
    """What is done with each of many videos; it can be pickled.

    Attributes:
        weights: the file of a trained model, or the folder of an exported one.
        options: KEY, VALUE, ...: config keys to change.
        imports: plug-ins to import first.
        format: of the result files, one of :data:`clab_d2.video.FORMATS`.
        score_threshold: what is drawn, and what formats without a score hold.
        draw: whether to write a drawn MP4 beside each result file.
        mode, track, appearance, shots: see :meth:`VideoDetector.detect`.
        runtime: of an exported model, see :meth:`VideoDetector.from_file`.
    """

    weights: str
    options: Sequence[str] = ()
    imports: Sequence[str] = ()
    format: str = "coco"
    score_threshold: float = 0.5
    draw: bool = False
    mode: Mode = "offline"
    track: bool | str = False
    appearance: bool = False
    shots: bool | None = None
    runtime: str | None = None

    def build_detector(self) -> VideoDetector:
        """The detector, for as many videos as wanted.

        Raises:
            ConfigError, DataError: as :meth:`VideoDetector.from_file`, or a plug-in fails.
        """
        import_plugins(self.imports)
        return VideoDetector.from_file(
            self.weights, options=self.options, runtime=self.runtime
        )

    def detect(self, detector: VideoDetector, video: Path, output: Path) -> None:
        """Write one video's results; the file is there once it is whole. Logs how many are shown.

        Raises:
            DataError: the video can't be read, or its results can't be written.
        """
        with open_video(video) as source, ExitStack() as stack:
            names = detector.class_names
            writer = stack.enter_context(
                open_detections(output, self.format, source.name, names, self.score_threshold)
            )
            drawing = None
            if self.draw:
                # Finished before the result file, which says that all of the video is done.
                drawing = stack.enter_context(open_writer(drawn_path(output), source.fps))
            results = detector.detect(
                source, self.mode, track=self.track, appearance=self.appearance, shots=self.shots
            )
            stack.callback(results.close)
            style = DrawStyle(colour_by="track" if self.track else "class")
            count = ShownCount(self.score_threshold)
            for result in results:
                count.add(result)
                writer.write(result)
                if drawing is not None:
                    scale = readable_scale(*result.image.shape[:2])
                    drawing.write(result.draw(self.score_threshold, scale, style))
        level = logging.INFO if count.shown else logging.WARNING
        logger.log(level, "%s: %s", video, count.summary())

    def try_to_detect(self, detector: VideoDetector, video: Path, output: Path) -> str | None:
        """:meth:`detect`; what went wrong, in a line, or None."""
        try:
            self.detect(detector, video, output)
        except Exception as error:  # whatever it is, the next video may be well
            return one_line(error)
        return None

    def detect_each(self, outputs: Mapping[Path, Path]) -> Iterator[tuple[Path, str | None]]:
        """Detect in videos one after the other.

        Args:
            outputs: the result file of each video.

        Yields:
            Each video, as it is done, and what went wrong, in a line, or None.

        Raises:
            ConfigError, DataError: there is no detector.
        """
        detector = self.build_detector()
        with logging_redirect_tqdm([logging.getLogger("clab_d2")]):
            for video, output in outputs.items():
                yield video, self.try_to_detect(detector, video, output)


def drawn_path(output: Path) -> Path:
    """``clip.mp4.json`` -> ``clip.mp4.drawn.mp4``."""
    return output.with_name(f"{output.stem}.drawn.mp4")
