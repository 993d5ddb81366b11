"""Whole videos per rank: every frame exactly once, in order, evenly shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clab_d2.data.samplers import VideoBatchSampler, VideoSampler, split_videos

_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def _video_ids(lengths: list[int]) -> list[int]:
    # Ids in no order, as a JSON may have them.
    return [7 * (len(lengths) - v) for v, length in enumerate(lengths) for _ in range(length)]


@given(_lengths, st.integers(1, 9))
def test_every_frame_exactly_once(lengths: list[int], world_size: int) -> None:
    video_ids = _video_ids(lengths)
    seen: list[int] = []
    for rank in range(world_size):
        sampler = VideoSampler(video_ids, rank, world_size)
        indices = list(sampler)
        assert len(sampler) == len(indices)
        assert indices == sorted(indices), "videos and their frames stay in order"
        videos = {video_ids[i] for i in indices}
        assert len(indices) == sum(v in videos for v in video_ids), "videos stay whole"
        seen += indices
    assert sorted(seen) == list(range(len(video_ids)))


@given(_lengths, st.integers(1, 9))
def test_balanced_by_frames(lengths: list[int], world_size: int) -> None:
    parts = split_videos(lengths, world_size)
    frames = [sum(lengths[v] for v in part) for part in parts]
    # The last video of the fullest part went there when it was the emptiest.
    shortest_of_fullest = min(lengths[v] for v in parts[frames.index(max(frames))])
    assert max(frames) - shortest_of_fullest <= min(frames)


def test_uneven_videos() -> None:
    lengths = [5, 100, 5, 40, 60, 5]
    assert split_videos(lengths, 2) == [[0, 1, 5], [2, 3, 4]]
    assert split_videos(lengths, 1) == [list(range(6))]


def test_ranks_without_a_video() -> None:
    samplers = [VideoSampler([4, 4, 4, 9], rank, 4) for rank in range(4)]
    assert [list(sampler) for sampler in samplers] == [[0, 1, 2], [3], [], []]
    assert list(VideoBatchSampler(samplers[3], 2)) == []
    assert len(VideoBatchSampler(samplers[3], 2)) == 0


@given(_lengths, st.integers(1, 4), st.integers(1, 9))
def test_batches_never_mix_videos(lengths: list[int], world_size: int, batch_size: int) -> None:
    video_ids = _video_ids(lengths)
    for rank in range(world_size):
        sampler = VideoSampler(video_ids, rank, world_size)
        batches = list(VideoBatchSampler(sampler, batch_size))
        assert len(VideoBatchSampler(sampler, batch_size)) == len(batches)
        assert [i for batch in batches for i in batch] == list(sampler)
        for batch in batches:
            assert len({video_ids[i] for i in batch}) == 1
            assert batch == list(range(batch[0], batch[0] + len(batch)))
            next_video = video_ids[batch[-1] + 1] if batch[-1] + 1 < len(video_ids) else None
            ends = next_video != video_ids[batch[0]]
            assert len(batch) == batch_size or (len(batch) < batch_size and ends)


def test_scattered_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="don't lie together"):
        VideoSampler([1, 2, 1], 0, 1)
