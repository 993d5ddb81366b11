"""References that stay within the key frame's shot: beyond a cut the film shows another scene."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from clab_d2.data.reference_frames import FrameChoice


class ShotReferences:
    """References of another method, which is given each shot as if it were a whole video.

    So the references of a key frame are those that it had if the video were cut into a file a shot.

    Attributes:
        sampling: the method.
        first_frames: the first frame of each shot, rising from 0. They may grow while a stream goes
            on: only those up to the key frame count for it then.
    """

    def __init__(self, sampling: FrameChoice, first_frames: Sequence[int]) -> None:
        self.sampling = sampling
        self.first_frames = first_frames
        self.reach = sampling.reach

    def references(self, num_frames: int, key: int) -> list[int]:
        """The method's frames within the key frame's shot."""
        following = bisect_right(self.first_frames, key)
        first = self.first_frames[following - 1]
        end = num_frames
        if following < len(self.first_frames):
            end = min(end, self.first_frames[following])
        return [first + frame for frame in self.sampling.references(end - first, key - first)]


def shot_number(first_frames: Sequence[int], frame: int) -> int:
    """Which shot a frame is in, from 0, by the first frame of each shot."""
    return bisect_right(first_frames, frame) - 1
