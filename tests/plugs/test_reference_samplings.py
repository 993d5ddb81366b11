"""Every method of reference sampling that is registered."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st
from registered import quick_config

from clab_d2 import get_clab_cfg
from clab_d2.data import (
    REFERENCE_SAMPLING_REGISTRY,
    ReferenceSampling,
    build_reference_sampling,
)
from clab_d2.data.reference_schedule import ReferenceSchedule, StreamSchedule
from clab_d2.engine import validate_config
from clab_d2.errors import ConfigError

NAMES = REFERENCE_SAMPLING_REGISTRY.names()
SECTIONS = ("INPUT", "TEST")

pytestmark = pytest.mark.parametrize("name", NAMES)
few = settings(deadline=None, max_examples=40)


def config(name: str, num: int = 4, stride: int = 1) -> CfgNode:
    options = [
        part
        for section in SECTIONS
        for part in (
            *(f"{section}.REFERENCES.NUM", num, f"{section}.REFERENCES.STRIDE", stride),
            *(f"{section}.REFERENCES.SAMPLING", name),
        )
    ]
    return quick_config(*options)


@functools.cache
def build(name: str, num: int = 4, stride: int = 1) -> ReferenceSampling:
    return build_reference_sampling(config(name, num, stride), is_train=True)


def is_random(name: str) -> bool:
    return build(name).is_random


def test_built_by_config_and_by_constructor_alike(name: str) -> None:
    entry, cfg = REFERENCE_SAMPLING_REGISTRY.get(name), config(name, num=6, stride=3)
    for section in SECTIONS:
        node = cfg[section].REFERENCES
        assert vars(entry(cfg, node)) == vars(entry(**entry.from_config(cfg, node)))


@few
@given(
    num=st.sampled_from([2, 4, 14]),
    stride=st.integers(1, 4),
    num_frames=st.integers(1, 60),
    data=st.data(),
)
def test_frames_lie_in_the_video_and_within_reach(
    name: str, num: int, stride: int, num_frames: int, data: st.DataObject
) -> None:
    sampling = build(name, num, stride)
    key = data.draw(st.integers(0, num_frames - 1))
    frames = sampling.frames(num_frames, key)
    assert frames
    assert all(0 <= frame < num_frames for frame in frames)
    if sampling.reach is not None:
        before, after = sampling.reach
        assert all(key - before <= frame <= key + after for frame in frames)
    assert len(sampling.references(num_frames, key)) == len(frames)


def test_reach_is_not_farther_than_needed(name: str) -> None:
    """Frames are held, and read ahead, as far as it says."""
    sampling = build(name, stride=3)
    if sampling.reach is None:
        return
    offsets = [
        frame - key
        for key in range(200, 300)
        for _ in range(30 if sampling.is_random else 1)
        for frame in sampling.frames(500, key)
    ]
    assert (-min(offsets), max(offsets)) == sampling.reach


def test_frames_follow_from_video_and_key_alone_unless_random(name: str) -> None:
    sampling, again = build(name), build(name)
    order = random.Random(0).sample(range(40), 40)
    expected = {key: sampling.frames(40, key) for key in range(40)}
    shuffled = {key: again.frames(40, key) for key in order}
    assert (shuffled == expected) != sampling.is_random


def test_random_ones_are_refused_at_test_alone(name: str) -> None:
    cfg = config(name)
    if is_random(name):
        with pytest.raises(ConfigError, match=r"^TEST\.REFERENCES\.SAMPLING"):
            validate_config(cfg)
    else:
        validate_config(cfg)
        build_reference_sampling(cfg, is_train=False)


@few
@given(
    num_frames=st.integers(1, 40),
    stride=st.integers(1, 3),
    data=st.data(),
)
def test_schedule_has_each_frame_when_it_is_used_and_no_longer(
    name: str, num_frames: int, stride: int, data: st.DataObject
) -> None:
    if is_random(name):
        return
    sampling = build(name, stride=stride)
    keys = sorted(data.draw(st.sets(st.integers(0, num_frames - 1), min_size=1)))
    schedule = ReferenceSchedule(sampling, num_frames, keys)
    came: list[int] = []
    held: set[int] = set()
    for position, key in enumerate(keys):
        references, entering, kept = schedule.at(key)
        assert references == sampling.references(num_frames, key)
        came += entering
        held |= set(entering)
        assert {*references, key} <= held, "each is there when it is used"
        held &= set(kept)
        later = {f for k in keys[position + 1 :] for f in (*sampling.frames(num_frames, k), k)}
        assert held == set(kept) == set(came) & later, "kept while it is used, no longer"
        if sampling.reach is not None:
            assert len(kept) <= sum(sampling.reach) + 1, "whatever the video's length"
    assert len(came) == len(set(came)), "each image comes once"


@few
@given(length=st.integers(1, 40), stride=st.integers(1, 3))
def test_stream_needs_frames_of_the_past_alone(name: str, length: int, stride: int) -> None:
    sampling = build(name, stride=stride)
    if sampling.is_random:
        return
    if sampling.reach is None or sampling.reach[1]:
        with pytest.raises(ValueError, match="has not yet"):
            StreamSchedule(sampling)
        return
    schedule = StreamSchedule(sampling)
    held: set[int] = set()
    for key in range(length):
        references, entering, kept = schedule.at(key)
        held |= set(entering)
        assert entering == [key]
        assert {*references, key} <= held
        held &= set(kept)


def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    cfg = config(name, num=6, stride=2)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    again = get_clab_cfg()
    again.merge_from_file(str(path))
    left, right = (build_reference_sampling(c, is_train=True) for c in (cfg, again))
    assert type(left) is type(right)
    assert vars(left) == vars(right)
