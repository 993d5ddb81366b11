"""The schedule of a video: each frame comes once, is kept while needed, and no longer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.data.reference_sampling import (
    AdaptiveReferences,
    CausalReferences,
    FixedStrideReferences,
    ReferenceSampling,
)
from clab_d2.data.reference_schedule import ReferenceSchedule, StreamSchedule

_samplings = st.one_of(
    st.none(),
    st.builds(AdaptiveReferences, st.integers(1, 9)),
    st.builds(FixedStrideReferences, st.integers(1, 6).map(lambda k: 2 * k), st.integers(1, 4)),
    st.builds(CausalReferences, st.integers(1, 9), st.integers(1, 4)),
)


def _walk(schedule, keys, sampling, num_frames) -> tuple[list[int], int]:
    """Play the model; returns the frames that came, and how many were held at most."""
    held: set[int] = set()
    came: list[int] = []
    most = 0
    for key in keys:
        scheduled = schedule.at(key)
        assert not held & set(scheduled.entering)
        came += scheduled.entering
        held |= set(scheduled.entering)
        assert key in held and set(scheduled.references) <= held
        assert scheduled.references == (sampling.frames(num_frames, key) if sampling else [])
        assert set(scheduled.kept) <= held
        held = set(scheduled.kept)
        most = max(most, len(held))
    return came, most


@settings(max_examples=200, deadline=None)
@given(_samplings, st.data())
def test_each_frame_comes_once_and_is_there_when_needed(
    sampling: ReferenceSampling | None, data: st.DataObject
) -> None:
    num_frames = data.draw(st.integers(1, 40))
    keys = sorted(data.draw(st.sets(st.integers(0, num_frames - 1), min_size=1)))
    schedule = ReferenceSchedule(sampling, num_frames, keys)
    came, _ = _walk(schedule, keys, sampling, num_frames)
    needed = {f for key in keys for f in (key, *schedule.at(key).references)}
    assert sorted(came) == sorted(needed), "no frame that nothing needs, and none twice"
    assert schedule.at(keys[-1]).kept == []


@settings(max_examples=100, deadline=None)
@given(_samplings, st.integers(1, 40), st.randoms(use_true_random=False))
def test_any_order_of_asking_gives_the_same(sampling, num_frames: int, rng) -> None:
    """Data-loading workers take turns at a video's key frames."""
    ordered = ReferenceSchedule(sampling, num_frames)
    expected = [ordered.at(key) for key in range(num_frames)]
    keys = list(range(num_frames))
    rng.shuffle(keys)
    shuffled = ReferenceSchedule(sampling, num_frames)
    assert {key: shuffled.at(key) for key in keys} == dict(enumerate(expected))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 60))
def test_a_stream_needs_no_more_than_its_window(num: int, stride: int, length: int) -> None:
    class Growing:
        """What a stream has of itself at each key frame."""

        def __init__(self, sampling: ReferenceSampling) -> None:
            self.sampling = sampling

        def frames(self, num_frames: int, key: int) -> list[int]:
            return self.sampling.frames(key + 1, key)

    sampling = CausalReferences(num, stride)
    came, most = _walk(StreamSchedule(sampling), range(length), Growing(sampling), length)
    assert came == list(range(length))
    assert most <= num + 1


def test_a_stream_has_no_frames_ahead() -> None:
    for sampling in (AdaptiveReferences(), FixedStrideReferences()):
        with pytest.raises(ValueError, match="needs frames that a stream has not yet"):
            StreamSchedule(sampling)
