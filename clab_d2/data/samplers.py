"""At test, each rank gets whole videos, in order, with about as many frames as any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detectron2.utils import comm
from torch.utils.data import Sampler


def split_videos(lengths: Sequence[int], num_parts: int) -> list[list[int]]:
    """Share out videos so that the parts have about the same number of frames.

    The longest video goes first, each to the part with the fewest frames so far (ties: to the
    first such part), so that no part exceeds the mean by more than a third of it or one video.

    Args:
        lengths: frames of each video.
        num_parts: how many parts to make.

    Returns:
        For each part the indices of its videos, ascending; a part may be empty.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    frames = [0] * num_parts
    for video in sorted(range(len(lengths)), key=lambda v: (-lengths[v], v)):
        part = min(range(num_parts), key=lambda p: (frames[p], p))
        parts[part].append(video)
        frames[part] += lengths[video]
    return [sorted(part) for part in parts]


class VideoSampler(Sampler[int]):
    """Yields the dataset indices of this rank's videos, video by video, frame by frame.

    Args:
        video_ids: the video of each of the dataset's records; frames of one video lie together,
            in order.
        rank, world_size: which share to give, of how many; by default those of this process.
    """

    def __init__(
        self,
        video_ids: Sequence[int],
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        rank = comm.get_rank() if rank is None else rank
        world_size = comm.get_world_size() if world_size is None else world_size
        ranges = _ranges_of_equal(video_ids)
        lengths = [len(frames) for frames in ranges]
        self.videos = [ranges[video] for video in split_videos(lengths, world_size)[rank]]

    def __iter__(self) -> Iterator[int]:
        for frames in self.videos:
            yield from frames

    def __len__(self) -> int:
        return sum(map(len, self.videos))


class VideoBatchSampler(Sampler[list[int]]):
    """Yields batches of consecutive frames of a :class:`VideoSampler`, never of two videos.

    Args:
        sampler: gives the videos.
        batch_size: frames a batch; a video's last batch may have fewer.
    """

    def __init__(self, sampler: VideoSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for frames in self.sampler.videos:
            for start in range(0, len(frames), self.batch_size):
                yield list(frames[start : start + self.batch_size])

    def __len__(self) -> int:
        return sum(-(-len(frames) // self.batch_size) for frames in self.sampler.videos)


def _ranges_of_equal(video_ids: Sequence[int]) -> list[range]:
    """Return the stretches of equal values, each as a range of indices."""
    starts = [i for i, v in enumerate(video_ids) if i == 0 or v != video_ids[i - 1]]
    if len({video_ids[start] for start in starts}) != len(starts):
        raise ValueError("the frames of a video don't lie together in the dataset")
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(video_ids)], strict=True)]
