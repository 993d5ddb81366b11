"""Where the frames of a dataset's videos are, held so that many processes can share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class VideoRecord:
    """One video as :class:`VideoTable` is built from it.

    Attributes:
        video_id: unique in the dataset.
        name: for people; "" where the dataset gives none.
        file_names: one a frame, in order, relative to the dataset's image root.
        sizes: (height, width) of each frame, in pixels.
        shots: the first frame of each shot, rising from 0.
    """

    video_id: int
    name: str
    file_names: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    shots: Sequence[int] = (0,)


class VideoTable:
    """(video id, frame id) -> file name and size, for every frame of a dataset.

    A mapper needs it to find reference frames, in every data-loading worker. It is a handful of
    flat arrays, about 60 bytes a frame and no Python object for any of them, so that forked workers
    share one copy instead of duplicating it as they touch reference counts.

    It also keeps one flag a frame, in memory shared between processes: which frames turned out to
    be unreadable. So a bad frame is reported once, whichever worker meets it how often.

    Args:
        image_root: folder that the file names are relative to.
        videos: the videos, in the dataset's order.
        not_found: for each video that is known to be neither there as pictures nor as a video file,
            which two were looked for.
    """

    def __init__(
        self, image_root: str, videos: Sequence[VideoRecord], not_found: Sequence[str] = ()
    ) -> None:
        self.image_root = image_root
        self.not_found = tuple(not_found)
        self.video_ids: list[int] = [video.video_id for video in videos]
        self._video_names = [video.name for video in videos]
        self._shots = [tuple(video.shots) for video in videos]
        self._row = {video_id: row for row, video_id in enumerate(self.video_ids)}
        lengths = [len(video.file_names) for video in videos]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        names = [name.encode() for video in videos for name in video.file_names]
        self._name_ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = np.frombuffer(b"".join(names), dtype=np.uint8)
        self._sizes = np.array(
            [size for video in videos for size in video.sizes], dtype=np.int32
        ).reshape(-1, 2)
        # Not above: who reads videos without PyTorch joins names by this module, too.
        import torch

        self._bad = torch.zeros(len(names), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        """Return the number of frames in all videos."""
        return len(self._name_ends)

    def num_frames(self, video_id: int) -> int:
        """Return the length of a video."""
        row = self._row[video_id]
        return int(self._starts[row + 1] - self._starts[row])

    def video_name(self, video_id: int) -> str:
        """Return the name of a video, "" if it has none."""
        return self._video_names[self._row[video_id]]

    def shots(self, video_id: int) -> tuple[int, ...]:
        """Return the first frame of each of a video's shots, rising from 0."""
        return self._shots[self._row[video_id]]

    def file_name(self, video_id: int, frame_id: int) -> str:
        """Return a frame's file, the image root included."""
        return self._file_name(self._index(video_id, frame_id))

    def size(self, video_id: int, frame_id: int) -> tuple[int, int]:
        """Return a frame's (height, width) as the annotations state it, in pixels."""
        height, width = self._sizes[self._index(video_id, frame_id)]
        return int(height), int(width)

    def mark_bad(self, video_id: int, frame_id: int) -> bool:
        """Note that a frame is unreadable, for all processes; return whether that was new."""
        index = self._index(video_id, frame_id)
        new = not self._bad[index]
        self._bad[index] = 1
        return new

    def bad_frames(self) -> list[str]:
        """Return the files of all frames that were noted as unreadable, in dataset order."""
        return [self._file_name(index) for index in self._bad.nonzero().flatten().tolist()]

    def _index(self, video_id: int, frame_id: int) -> int:
        row = self._row[video_id]
        index = int(self._starts[row]) + frame_id
        if frame_id < 0 or index >= self._starts[row + 1]:
            raise IndexError(f"video {video_id} has no frame {frame_id}")
        return index

    def _file_name(self, index: int) -> str:
        start = int(self._name_ends[index - 1]) if index else 0
        name = self._names[start : int(self._name_ends[index])].tobytes().decode()
        return join_image_root(self.image_root, name)


def join_image_root(image_root: str, name: str) -> str:
    """Join with a slash whatever the platform; an absolute name stays as it is."""
    if not image_root or name.startswith("/"):
        return name
    return f"{image_root.rstrip('/')}/{name}"
