"""Where a source of frames cuts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clab_d2.data.shot_finder import find_shots
from clab_d2.errors import DataError
from clab_d2.video.sources import VideoSource


def find_shots_of(source: VideoSource) -> list[int]:
    """The first frame of each shot of a video, rising from 0.

    Args:
        source: of known length; all of it is read.

    Raises:
        ConfigError: PySceneDetect is not installed.
    """
    return find_shots(_frames(source))


def _frames(source: VideoSource) -> Iterator[np.ndarray | None]:
    for index in range(source.num_frames or 0):
        try:
            yield source.read(index)
        except DataError:
            yield None
        except IndexError:  # it ends before the length that it states
            return
