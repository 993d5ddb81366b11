"""Reference sampling: equal to the official release, and within bounds for any numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from clab_d2.data.frame_sampling import (
    adaptive_references,
    causal_window,
    entering_frames,
    fixed_stride_window,
    training_references,
)
from hypothesis import given
from hypothesis import strategies as st

_TESTS = Path(__file__).resolve().parents[1]
_GOLDEN = _TESTS / "golden"
_SHARED = _TESTS.parents[1] / "shared" / "golden"

_SAMPLING = json.loads((_GOLDEN / "frame_sampling.json").read_text())
_TRAINING = json.loads((_GOLDEN / "train_sampling.json").read_text())


@pytest.mark.parametrize("case", _SAMPLING["adaptive"])
def test_adaptive_references_equal_the_release(case: str) -> None:
    num_frames, n = map(int, case.split(","))
    assert adaptive_references(num_frames, n) == _SAMPLING["adaptive"][case]


@pytest.mark.parametrize("case", _SAMPLING["fixed_new_refs_per_frame"])
def test_frames_enter_the_fixed_window_as_in_the_release(case: str) -> None:
    """The release names a frame that enters, also where it is in the window already.

    It pushes the (clamped) frame k strides ahead into a queue at every stride-th key frame, twice
    in its list since its loader doubles a lone reference; the window that results
    (``test_fixed_window_equals_the_release``) has it once a push. Ours names distinct frames that
    the window did not hold.
    """
    num_frames, twice_k, stride = map(int, case.split(","))
    k = twice_k // 2
    pushed = _SAMPLING["fixed_new_refs_per_frame"][case]
    assert len(pushed) == num_frames
    assert fixed_stride_window(num_frames, 0, k, stride) == pushed[0]
    held = None
    for key in range(num_frames):
        # The queue itself: between its moves the key frame only covers the middle place.
        queue = fixed_stride_window(num_frames, key - key % stride, k, stride)
        assert entering_frames(queue, held) == sorted(set(pushed[key]) - set(held or ()))
        if key:
            assert set(pushed[key]) <= {queue[-1]}, "what is pushed comes in last"
        held = queue


@pytest.mark.skipif(not _SHARED.is_dir(), reason="the golden detections lie beside the repository")
@pytest.mark.parametrize("video", "ab")
def test_fixed_window_equals_the_release(video: str) -> None:
    golden = np.load(_SHARED / "tiny_clab" / "detections_fixed_stride.npz")
    windows = golden[f"{video}/window"]
    k, stride = int(golden["frames_each_side"]), int(golden["stride"])
    ours = [fixed_stride_window(len(windows), key, k, stride) for key in range(len(windows))]
    np.testing.assert_array_equal(ours, windows)


@pytest.mark.parametrize("case", _TRAINING, ids=lambda c: f"{c['num_frames']}-{c['key']}")
def test_training_references_are_those_of_the_release(case: dict) -> None:
    rng = random.Random(0)
    seen = {
        tuple(training_references(case["num_frames"], case["key"], 2, 9, rng)) for _ in range(4000)
    }
    observed = {tuple(pair) for pair in case["observed"]}
    if case["num_frames"] == 1:
        assert observed == {()}
        observed = {(0, 0)}  # where the release has none, the key frame stands in
    # 400 draws show all pairs there are: 81 where both sides have 9 frames.
    assert seen == observed


def test_training_references_are_spread_evenly() -> None:
    rng = random.Random(0)
    pairs = [training_references(100, 50, 2, 9, rng) for _ in range(9000)]
    for side, frames in enumerate((range(41, 50), range(51, 60))):
        counts = [sum(pair[side] == frame for pair in pairs) for frame in frames]
        # 1000 each on average, with a standard deviation of 30.
        assert min(counts) > 850 and max(counts) < 1150


_videos = st.integers(1, 3000).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n - 1))
)


@given(_videos, st.integers(0, 9), st.integers(1, 12), st.integers(0, 2**32))
def test_training_references_in_range(
    video: tuple[int, int], num_refs: int, frame_range: int, seed: int
) -> None:
    num_frames, key = video
    refs = training_references(num_frames, key, num_refs, frame_range, random.Random(seed))
    assert len(refs) == num_refs
    assert refs == training_references(num_frames, key, num_refs, frame_range, random.Random(seed))
    for ref in refs:
        assert 0 <= ref < num_frames and abs(ref - key) <= frame_range
        assert ref != key or num_frames == 1
    room = min(key, frame_range), min(num_frames - 1 - key, frame_range)
    if num_refs % 2 == 0 and min(room) >= num_refs // 2:
        assert sum(ref < key for ref in refs) == num_refs // 2
        assert len(set(refs)) == num_refs


@given(st.integers(1, 3000), st.integers(1, 60))
def test_adaptive_references_span_the_video(num_frames: int, n: int) -> None:
    refs = adaptive_references(num_frames, n)
    assert len(refs) == n and refs == sorted(refs)
    assert refs[0] >= 0 and refs[-1] < num_frames
    if n > 1:
        assert refs[0] == 0 and refs[-1] == num_frames - 1
    if n >= num_frames and n > 1:
        assert set(refs) == set(range(num_frames))


@given(_videos, st.integers(0, 15), st.integers(1, 12))
def test_fixed_window_in_range(video: tuple[int, int], k: int, stride: int) -> None:
    num_frames, key = video
    window = fixed_stride_window(num_frames, key, k, stride)
    assert len(window) == 2 * k + 1 and window[k] == key
    assert all(0 <= frame < num_frames for frame in window)
    assert window == sorted(window)
    assert all(abs(frame - key) <= (k + 1) * stride for frame in window)


@given(st.integers(0, 3000), st.integers(0, 15), st.integers(1, 12))
def test_causal_window_is_of_the_past(key: int, k: int, stride: int) -> None:
    window = causal_window(key, k, stride)
    assert len(window) == k + 1 and window[-1] == key
    assert all(0 <= frame < max(key, 1) for frame in window[:-1])
    if stride == 1:
        assert window == [max(key - i, 0) for i in range(k, -1, -1)]


@given(st.integers(1, 80), st.integers(1, 6), st.integers(1, 5))
def test_a_stream_never_goes_back(num_frames: int, k: int, stride: int) -> None:
    previous = None
    for key in range(num_frames):
        window = causal_window(key, k, stride)
        assert set(entering_frames(window, previous)) <= {key}
        previous = window


@given(st.integers(1, 80), st.integers(0, 6), st.integers(1, 5))
def test_entering_frames_rebuild_every_window(num_frames: int, k: int, stride: int) -> None:
    memory: set[int] = set()
    previous = None
    for key in range(num_frames):
        window = fixed_stride_window(num_frames, key, k, stride)
        entering = entering_frames(window, previous)
        assert not memory & set(entering), "a frame that is held does not enter again"
        memory = {frame for frame in memory | set(entering) if frame in window}
        assert memory == set(window)
        previous = window


@pytest.mark.parametrize(
    "call",
    [
        lambda: training_references(3, 3, 2, 9, random.Random()),
        lambda: adaptive_references(0, 14),
        lambda: adaptive_references(3, 0),
        lambda: fixed_stride_window(3, -1, 2, 1),
        lambda: fixed_stride_window(3, 0, 2, 0),
        lambda: causal_window(-1, 2, 1),
        lambda: causal_window(1, -2, 1),
    ],
)
def test_impossible_numbers_are_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
