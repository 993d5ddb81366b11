"""References within shots: those that each shot had as a video of its own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clab_d2.data.reference_sampling import (
    AdaptiveReferences,
    CausalReferences,
    FixedStrideReferences,
    RandomReferences,
    ReferenceSampling,
)
from clab_d2.data.reference_schedule import ReferenceSchedule, StreamSchedule
from clab_d2.data.shot_references import ShotReferences, shot_number

_samplings = st.one_of(
    st.builds(AdaptiveReferences, st.integers(1, 9)),
    st.builds(FixedStrideReferences, st.integers(1, 4).map(lambda k: 2 * k), st.integers(1, 4)),
    st.builds(CausalReferences, st.integers(1, 9), st.integers(1, 4)),
)


@settings(max_examples=200, deadline=None)
@given(_samplings, st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_each_shot_is_a_video_of_its_own(sampling: ReferenceSampling, lengths: list[int]) -> None:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    within = ShotReferences(sampling, starts)
    film = ReferenceSchedule(within, sum(lengths))
    for start, length in zip(starts, lengths, strict=True):
        alone = ReferenceSchedule(sampling, length)
        for key in range(length):
            of_film, of_shot = film.at(start + key), alone.at(key)
            assert of_film == tuple([start + f for f in frames] for frames in of_shot)


def test_random_references_stay_within_the_shot() -> None:
    random.seed(0)
    within = ShotReferences(RandomReferences(2, 9), [0, 5, 6])
    assert within.reach == (9, 9)
    drawn = {key: {f for _ in range(50) for f in within.references(12, key)} for key in (4, 5, 7)}
    assert drawn == {4: {0, 1, 2, 3}, 5: {5}, 7: {6, 8, 9, 10, 11}}


def test_a_stream_forgets_at_a_cut() -> None:
    starts = [0]
    schedule = StreamSchedule(ShotReferences(CausalReferences(3), starts))
    assert schedule.at(5) == ([2, 3, 4, 5], [5], [3, 4, 5])
    starts.append(6)  # seen with the frame itself
    assert schedule.at(6) == ([6, 6, 6, 6], [6], [6])
    assert schedule.at(8) == ([6, 6, 7, 8], [8], [6, 7, 8])


def test_what_looks_ahead_is_still_refused_in_streams() -> None:
    with pytest.raises(ValueError, match="needs frames that a stream has not yet"):
        StreamSchedule(ShotReferences(FixedStrideReferences(), [0]))


def test_numbers_of_shots() -> None:
    assert [shot_number([0, 3, 4], frame) for frame in range(6)] == [0, 0, 0, 1, 2, 2]
