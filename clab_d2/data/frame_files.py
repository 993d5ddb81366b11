"""Where the frames of a dataset are: pictures in its image root, or video files read on demand.

Decided once a video, from its first and last picture, so that a dataset of a million pictures isn't
asked for each of them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from itertools import pairwise

from clab_d2.data.video_frames import VIDEO_SUFFIXES, is_video_file, split_frame_name
from clab_d2.data.video_table import join_image_root
from clab_d2.errors import DataError

__all__ = ["FrameFiles", "first_out_of_order", "natural_key"]


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts ``2.jpg`` before ``10.jpg``."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts]


class FrameFiles:
    """Finds the frames of one dataset, video by video.

    A video's frames are, whichever is there first,

    - frames of the image root, where that is itself a video file;
    - the pictures that the JSON names;
    - frames of the video file that the JSON names for the video (its ``file``) or, where it names
      none, of one in the image root that is called like the video (``<name>.mp4`` and the like).

    Args:
        image_root: the folder that names are relative to, or the dataset's only video as a file.
        num_videos: how many videos (stills included) the dataset has.

    Attributes:
        root: the folder that :meth:`names` are relative to.
        not_found: for each video that names a ``file`` and has neither that nor its pictures, which
            two were looked for.

    Raises:
        DataError: the image root is a file, but no video file, or there are several videos.
    """

    def __init__(self, image_root: str, num_videos: int) -> None:
        self.root = image_root
        self.not_found: list[str] = []
        self._only_video: str | None = None
        self._videos_in: dict[str, dict[str, list[str]]] = {}  # by folder and name
        if not os.path.isfile(image_root):
            return
        if not is_video_file(image_root):
            raise DataError(
                f"{image_root}: neither a folder nor a video file ({_suffixes()}); correct the "
                "image root"
            )
        if num_videos != 1:
            raise DataError(
                f"{image_root}: one video file as image root, but the annotations are of "
                f'{num_videos} videos; name the folder of the video files, and each one\'s "file" '
                "in the JSON"
            )
        self.root, self._only_video = os.path.split(image_root)

    def names(
        self, video: str, file: str | None, file_names: Sequence[str], frame_ids: Sequence[int]
    ) -> list[str]:
        """Return where each frame of a video is, relative to :attr:`root`.

        Args:
            video: the video's name.
            file: the video file that the JSON names for it, or None.
            file_names: what the JSON calls each frame, in order; at least one.
            frame_ids: the number of each, which is its number in a video file, from 0.

        Returns:
            The file names as they are, or ``<video file>#<number>`` of each.

        Raises:
            DataError: the pictures are not there, and ``file`` has no video's suffix, or it can't
                be told which frames of which video file called like the video they would be.
        """
        video_file = self._only_video or self._video_file(video, file, file_names)
        if video_file is None:
            return list(file_names)
        if file is None and not _numbered_alike(file_names, frame_ids):
            raise DataError(
                f"{self.root}: video {video} has no picture {file_names[0]}, and as its pictures "
                f"are not numbered 0, 1, 2, ... it is unclear which frames of {video_file} they "
                f"are; call each frame {video_file}#<its number, from 0> in the JSON"
            )
        return [
            f"{video_file}#{_number_in_file(name, frame_id)}"
            for name, frame_id in zip(file_names, frame_ids, strict=True)
        ]

    def _video_file(self, video: str, file: str | None, file_names: Sequence[str]) -> str | None:
        candidates = self._called_like(video) if file is None else [file]
        if not candidates:
            return None
        missing = [n for n in (file_names[0], file_names[-1]) if not self._frame_is_there(n)]
        if not missing:
            return None
        if not is_video_file(candidates[0]):
            raise DataError(
                f'{self.root}: video {video} has no picture {missing[0]} and its "file" {file!r} '
                f"is no video file; its name must end with one of {_suffixes()}"
            )
        if len(candidates) > 1:
            raise DataError(
                f"{self.root}: video {video} may be {' or '.join(candidates)}; name the right one "
                'as "file" of the video in the JSON, or remove the others'
            )
        if file is None or os.path.isfile(join_image_root(self.root, file)):
            return candidates[0]
        picture, clip = (join_image_root(self.root, name) for name in (missing[0], file))
        self.not_found.append(f"neither the picture {picture} nor the video file {clip} is there")
        return None

    def _frame_is_there(self, name: str) -> bool:
        path = join_image_root(self.root, name)
        if os.path.exists(path):
            return True
        in_video = split_frame_name(path)
        return in_video is not None and os.path.isfile(in_video[0])

    def _called_like(self, video: str) -> list[str]:
        """Video files in the image root that are called like a video, with or without a suffix."""
        if not video:
            return []
        folder, _, name = video.rpartition("/")
        if folder not in self._videos_in:
            # One look at the folder, rather than one at each name that a video file might have.
            self._videos_in[folder] = _videos_by_name(join_image_root(self.root, folder) or ".")
        found = [f"{folder}/{f}" if folder else f for f in self._videos_in[folder].get(name, ())]
        return [file for file in found if os.path.isfile(join_image_root(self.root, file))]


def _videos_by_name(folder: str) -> dict[str, list[str]]:
    """Video files of a folder under their names, with and without suffix."""
    by_name: dict[str, list[str]] = {}
    try:
        files = sorted(os.listdir(folder))
    except OSError:
        return by_name
    for file in filter(is_video_file, files):
        for name in (file, os.path.splitext(file)[0]):
            by_name.setdefault(name, []).append(file)
    return by_name


def _number_in_file(name: str, frame_id: int) -> int:
    """A frame that the JSON names by its number in a video file keeps that number."""
    in_video = split_frame_name(name)
    return frame_id if in_video is None else in_video[1]


def _numbered_alike(file_names: Sequence[str], frame_ids: Sequence[int]) -> bool:
    """Whether the numbers in pictures' names, if any, are those of the frames, from 0 or 1."""
    shifts = set()
    for name, frame_id in ((file_names[0], frame_ids[0]), (file_names[-1], frame_ids[-1])):
        in_video = split_frame_name(name)
        number = re.search(r"(\d+)\D*$", os.path.splitext(os.path.basename(name))[0])
        if in_video is None and number is not None:
            shifts.add(int(number[1]) - frame_id)
    return shifts in (set(), {0}, {1})


def first_out_of_order(file_names: Sequence[str]) -> int | None:
    """Position of the first frame whose number in its file's name is lower than the one before.

    Frames that were numbered in the order in which a folder lists them (``10.jpg`` before
    ``2.jpg``) are told by this. None where the order agrees, and where the names hold no numbers to
    go by: they must be there in nearly all names, each once, and leave out less than every other.
    """
    # By far the most frequent, and quickly seen: digits enough for all, so that text sorts right.
    if len(set(map(len, file_names))) <= 1 and all(a <= b for a, b in pairwise(file_names)):
        return None
    found = [_NUMBER_IN_NAME.search(name) for name in file_names]
    numbers = [(int(match[1]), place) for place, match in enumerate(found) if match is not None]
    values = {number for number, _ in numbers}
    enough = len(numbers) > 2 and len(numbers) >= 0.9 * len(file_names)
    if not enough or len(values) < len(numbers):
        return None
    step = math.gcd(*(value - min(values) for value in values))  # every 10th frame, say
    if (max(values) - min(values)) // step >= 2 * len(values):
        return None
    for (before, _), (number, place) in pairwise(numbers):
        if number < before:
            return place
    return None


# The last number of a picture's name, or that of a frame in a video file.
_NUMBER_IN_NAME = re.compile(r"(\d{1,18})(?:[^\d/]*\.[^./#]*|[^\d/.#]*)$")


def _suffixes() -> str:
    return ", ".join(sorted(VIDEO_SUFFIXES))
