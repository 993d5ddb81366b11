"""Where a film cuts, found by PySceneDetect (optional dependency)."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from clab_d2.optional import import_optional

# PySceneDetect's thresholds are for pictures of about this width, to which it too shrinks them.
_WIDTH = 256
# Its detectors ask for a frame rate, but count in frames where, as by default, lengths are frames.
_ANY_RATE = 25.0


class ShotFinder:
    """Finds the first frames of a video's shots while its frames come, one after the other.

    Hard cuts are found; fades and dissolves are not looked for. A shot has at least 15 frames: of
    two cuts that are closer, the second is passed over, so that a flash of light is not a shot of
    its own. These are the defaults of PySceneDetect's detectors.

    Args:
        causal: a cut is told at the first frame of the new shot, by the content of that frame and
            the one before (``ContentDetector``): for streams. Otherwise it is told two frames
            later, once it is seen that the change stands out from those around it
            (``AdaptiveDetector``), which fast motion and fades deceive less.

    Attributes:
        first_frames: the first frame of each shot found so far, rising from 0.

    Raises:
        ConfigError: PySceneDetect is not installed.
    """

    def __init__(self, causal: bool = False) -> None:
        self._library = import_optional("scenedetect", "shots", "finding the cuts of a video")
        if causal:
            suppress = self._library.detector.FlashFilter.Mode.SUPPRESS  # the other looks ahead
            self._detector = self._library.ContentDetector(filter_mode=suppress)
        else:
            self._detector = self._library.AdaptiveDetector()
        self._size: tuple[int, int] | None = None
        self._frame = 0
        self.first_frames = [0]

    def see(self, image: np.ndarray | None) -> None:
        """Look at the next frame.

        Args:
            image: RGB uint8 (H, W, 3); None where the frame is damaged, which begins no shot.
        """
        frame, self._frame = self._frame, self._frame + 1
        if image is None:
            return
        if self._size is None:  # kept: the detectors want all frames of a size
            height, width = image.shape[:2]
            scale = min(1.0, _WIDTH / width)
            self._size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.cvtColor(cv2.resize(image, self._size), cv2.COLOR_RGB2BGR)
        cuts = self._detector.process_frame(
            self._library.FrameTimecode(frame, _ANY_RATE), small
        )
        self.first_frames += [cut.frame_num for cut in cuts]


def find_shots(frames: Iterable[np.ndarray | None]) -> list[int]:
    """The first frame of each shot of a video, rising from 0.

    Args:
        frames: all of the video, see :meth:`ShotFinder.see`.

    Raises:
        ConfigError: PySceneDetect is not installed.
    """
    finder = ShotFinder()
    for image in frames:
        finder.see(image)
    return finder.first_frames

