"""Thinning CocoVID files: the right frames stay, nothing else changes, speeds are kept."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_split_coco_vid import FRAMES, Json, annotated_ids, make

from clab_d2.converters.thin_coco_vid import thin
from clab_d2.errors import ConfigError


def _kept(data: Json, video: int) -> list[int]:
    return [i["frame_id"] for i in data["images"] if i.get("video_id") == video and i["annotated"]]


def test_the_middle_of_every_three() -> None:
    data = make([[True] * 8, [True], [True] * 2, [False, True, True, False, True, True]], stills=1)
    thinned = thin(data, 3)
    assert [_kept(thinned, video) for video in (1, 2, 3, 4)] == [[1, 4, 7], [0], [1], [2]]
    assert thinned["images"][-1]["annotated"]
    assert [_kept(thin(data, 2), video) for video in (1, 4)] == [[1, 3, 5, 7], [2, 5]]


@settings(max_examples=60, deadline=None)
@given(FRAMES, st.integers(0, 2), st.integers(1, 12))
def test_only_annotations_go(videos: list[list[bool]], stills: int, every: int) -> None:
    data = make(videos, stills)
    before = copy.deepcopy(data)
    thinned = thin(data, every)
    assert data == before
    assert [i["id"] for i in thinned["images"]] == [i["id"] for i in data["images"]]
    kept = annotated_ids(thinned)
    assert [a["id"] for a in thinned["annotations"]] == [
        a["id"] for a in data["annotations"] if a["image_id"] in kept
    ]
    for number, frames in enumerate(videos, 1):
        count = sum(frames)
        assert len(_kept(thinned, number)) == max(round(count / every), min(count, 1)) or (
            every % 2 == 0 and count % every == every // 2
        )
    if every == 1:
        assert kept == annotated_ids(data)


def test_speeds_stay_what_they_were() -> None:
    data = make([[True] * 9])
    whole = {a["id"]: a["motion_iou"] for a in thin(data, 1)["annotations"]}
    thinned = {a["id"]: a["motion_iou"] for a in thin(data, 3)["annotations"]}
    assert len(thinned) == 9 and len(np.unique(list(whole.values()))) > 2
    assert thinned == {key: whole[key] for key in thinned}


def test_every_is_positive() -> None:
    with pytest.raises(ConfigError, match="every 0: it must be at least 1"):
        thin(make([[True]]), 0)
