"""Reference sampling: equal to the official release, and within bounds for any numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clab_d2.config import get_clab_cfg
from clab_d2.data.reference_sampling import (
    AdaptiveReferences,
    CausalReferences,
    FixedStrideReferences,
    RandomReferences,
    build_reference_sampling,
)
from clab_d2.errors import ConfigError

_TESTS = Path(__file__).resolve().parents[1]
_GOLDEN = _TESTS / "golden"
_SHARED = _TESTS.parents[1] / "shared" / "golden"

_SAMPLING = json.loads((_GOLDEN / "frame_sampling.json").read_text())
_TRAINING = json.loads((_GOLDEN / "train_sampling.json").read_text())


@pytest.mark.parametrize("case", _SAMPLING["adaptive"])
def test_adaptive_references_equal_the_release(case: str) -> None:
    num_frames, n = map(int, case.split(","))
    assert AdaptiveReferences(n).frames(num_frames, 0) == [*_SAMPLING["adaptive"][case], 0]


@pytest.mark.parametrize("case", _SAMPLING["fixed_new_refs_per_frame"])
def test_frames_enter_the_fixed_window_as_in_the_release(case: str) -> None:
    """The release names a frame that enters, also where it is in the window already.

    It pushes the (clamped) frame k strides ahead into a queue at every stride-th key frame, twice
    in its list since its loader doubles a lone reference; the window that results
    (``test_fixed_window_equals_the_release``) has it once a push. Ours names distinct frames that
    the window did not hold.
    """
    num_frames, twice_k, stride = map(int, case.split(","))
    sampling = FixedStrideReferences(twice_k, stride)
    pushed = _SAMPLING["fixed_new_refs_per_frame"][case]
    assert len(pushed) == num_frames
    assert sampling.frames(num_frames, 0) == pushed[0]
    held: list[int] = []
    for key in range(num_frames):
        # The queue itself: between its moves the key frame only covers the middle place.
        queue = sampling.frames(num_frames, key - key % stride)
        assert set(queue) - set(held) == set(pushed[key]) - set(held)
        if key:
            assert set(pushed[key]) <= {queue[-1]}, "what is pushed comes in last"
        held = queue


@pytest.mark.skipif(not _SHARED.is_dir(), reason="the golden detections lie beside the repository")
@pytest.mark.parametrize("video", "ab")
def test_fixed_window_equals_the_release(video: str) -> None:
    golden = np.load(_SHARED / "tiny_clab" / "detections_fixed_stride.npz")
    windows = golden[f"{video}/window"]
    k, stride = int(golden["frames_each_side"]), int(golden["stride"])
    sampling = FixedStrideReferences(2 * k, stride)
    ours = [sampling.frames(len(windows), key) for key in range(len(windows))]
    np.testing.assert_array_equal(ours, windows)


@pytest.mark.parametrize("case", _TRAINING, ids=lambda c: f"{c['num_frames']}-{c['key']}")
def test_training_references_are_those_of_the_release(case: dict) -> None:
    rng = random.Random(0)
    seen = {
        tuple(RandomReferences(2, 9).frames(case["num_frames"], case["key"], rng))
        for _ in range(4000)
    }
    observed = {tuple(pair) for pair in case["observed"]}
    if case["num_frames"] == 1:
        assert observed == {()}
        observed = {(0, 0)}  # where the release has none, the key frame stands in
    # 400 draws show all pairs there are: 81 where both sides have 9 frames.
    assert seen == observed


def test_training_references_are_spread_evenly() -> None:
    rng = random.Random(0)
    pairs = [RandomReferences(2, 9).frames(100, 50, rng) for _ in range(9000)]
    for side, frames in enumerate((range(41, 50), range(51, 60))):
        counts = [sum(pair[side] == frame for pair in pairs) for frame in frames]
        # 1000 each on average, with a standard deviation of 30.
        assert min(counts) > 850 and max(counts) < 1150


_videos = st.integers(1, 3000).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n - 1))
)


@given(_videos, st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32))
def test_training_references_in_range(
    video: tuple[int, int], num_refs: int, frame_range: int, seed: int
) -> None:
    num_frames, key = video
    sampling = RandomReferences(num_refs, frame_range)
    refs = sampling.frames(num_frames, key, random.Random(seed))
    assert len(refs) == num_refs
    assert refs == sampling.frames(num_frames, key, random.Random(seed))
    for ref in refs:
        assert 0 <= ref < num_frames and abs(ref - key) <= frame_range
        assert ref != key or num_frames == 1
    room = min(key, frame_range), min(num_frames - 1 - key, frame_range)
    if num_refs % 2 == 0 and min(room) >= num_refs // 2:
        assert sum(ref < key for ref in refs) == num_refs // 2
        assert len(set(refs)) == num_refs


@given(st.integers(1, 3000), st.integers(1, 60))
def test_adaptive_references_span_the_video(num_frames: int, n: int) -> None:
    *refs, key = AdaptiveReferences(n).frames(num_frames, num_frames // 2)
    assert key == num_frames // 2
    assert len(refs) == n and refs == sorted(refs)
    assert refs[0] >= 0 and refs[-1] < num_frames
    if n > 1:
        assert refs[0] == 0 and refs[-1] == num_frames - 1
    if n >= num_frames and n > 1:
        assert set(refs) == set(range(num_frames))


@given(_videos, st.integers(1, 15), st.integers(1, 12))
def test_fixed_window_in_range(video: tuple[int, int], k: int, stride: int) -> None:
    num_frames, key = video
    sampling = FixedStrideReferences(2 * k, stride)
    window = sampling.frames(num_frames, key)
    assert len(window) == 2 * k + 1 and window[k] == key
    assert all(0 <= frame < num_frames for frame in window)
    assert window == sorted(window)
    assert all(key - sampling.reach[0] <= frame <= key + sampling.reach[1] for frame in window)


@given(st.integers(0, 3000), st.integers(1, 15), st.integers(1, 12))
def test_causal_window_is_of_the_past(key: int, k: int, stride: int) -> None:
    sampling = CausalReferences(k, stride)
    window = sampling.frames(key + 1, key)
    assert sampling.reach == (k * stride, 0)
    assert all(frame >= key - k * stride for frame in window)
    assert len(window) == k + 1 and window[-1] == key
    assert all(0 <= frame < max(key, 1) for frame in window[:-1])
    if stride == 1:
        assert window == [max(key - i, 0) for i in range(k, -1, -1)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: RandomReferences().frames(3, 3),
        lambda: AdaptiveReferences().frames(0, 0),
        lambda: FixedStrideReferences().frames(3, -1),
        lambda: CausalReferences().frames(1, -1),
    ],
)
def test_frames_that_are_not_there_are_refused(call) -> None:
    with pytest.raises(ValueError, match="is not in a video of"):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["TEST.REFERENCES.NUM", 0], r"TEST\.REFERENCES\.NUM is 0; it must be at least 1"),
        (["TEST.REFERENCES.SAMPLING", "even"], r"TEST\.REFERENCES\.SAMPLING 'even' .*adaptive"),
        (["TEST.REFERENCES.SAMPLING", "random"], r"TEST\.REFERENCES\.SAMPLING .*at random"),
        (
            ["TEST.REFERENCES.SAMPLING", "fixed", "TEST.REFERENCES.NUM", 5],
            r"TEST\.REFERENCES\.NUM is 5; .* must be even",
        ),
        (
            ["TEST.REFERENCES.SAMPLING", "causal", "TEST.REFERENCES.STRIDE", 0],
            r"TEST\.REFERENCES\.STRIDE is 0",
        ),
        (["INPUT.REFERENCES.NUM", 0], r"INPUT\.REFERENCES\.NUM is 0"),
        (["INPUT.REFERENCES.RANGE", 0], r"INPUT\.REFERENCES\.RANGE is 0"),
    ],
)
def test_contradicting_config(options: list, message: str) -> None:
    cfg = get_clab_cfg()
    cfg.merge_from_list(options)
    with pytest.raises(ConfigError, match=message):
        build_reference_sampling(cfg, is_train=options[0].startswith("INPUT"))
