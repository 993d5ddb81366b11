"""Detection in a list of videos and in a folder of them."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
from encoded_videos import encode, moving_pictures
from numbered_frames import grey, write_pictures
from stub_detector import NotingModel, make_cfg

from clab_d2.errors import DataError
from clab_d2.video import FrameResult, SequenceSource, VideoDetector, each_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    encode(tmp_path / "a.mp4", moving_pictures(5))
    encode(tmp_path / "deep" / "b.mp4", moving_pictures(3))
    write_pictures(tmp_path / "deep" / "pictures", [f"{n}.png" for n in range(4)])
    return tmp_path


def videos(results: list[FrameResult]) -> list[tuple[str, list[int]]]:
    """Name and frame numbers of each video in a row."""
    of_video = groupby(results, key=lambda result: result.video)
    return [(name, [result.index for result in frames]) for name, frames in of_video]


def scores(results: list[FrameResult]) -> list[list[float]]:
    return [result.instances.scores.tolist() for result in results]


def test_several_are_as_one_by_one(folder: Path) -> None:
    paths = [folder / "deep" / "b.mp4", str(folder / "a.mp4"), folder / "deep" / "pictures"]
    detector = VideoDetector(make_cfg(), NotingModel())
    results = list(detector.detect(paths))
    names = [str(path) for path in paths]
    assert videos(results) == [
        (name, list(range(n))) for name, n in zip(names, (3, 5, 4), strict=True)
    ]
    assert scores(results) == [s for path in paths for s in scores(list(detector.detect(path)))]


def test_a_folder_of_videos(folder: Path) -> None:
    results = list(VideoDetector(make_cfg(), NotingModel()).detect(folder, mode="online"))
    names = ["a.mp4", "deep/b.mp4", "deep/pictures"]
    assert [name for name, _ in videos(results)] == [str(folder / name) for name in names]
    assert list(each_video([folder, folder / "a.mp4"])) == [
        *(folder / name for name in names),
        folder / "a.mp4",
    ]


def test_what_is_one_video_stays_one(folder: Path) -> None:
    frames = [grey(0), grey(1)]
    for source in ("rtsp://none", 0, folder / "a.mp4", folder / "deep" / "pictures"):
        assert list(each_video(source)) == [source]
    (one,) = each_video(frames)
    assert one is frames
    encode(folder / "deep" / "pictures" / "also.mp4", moving_pictures(2))
    assert list(each_video(folder / "deep" / "pictures")) == [folder / "deep" / "pictures"]


def test_open_sources_stay_open() -> None:
    sources = [SequenceSource([grey(n)] * 2, name=str(n)) for n in range(2)]
    results = list(VideoDetector(make_cfg(), NotingModel()).detect(sources))
    assert videos(results) == [("0", [0, 1]), ("1", [0, 1])]
    assert sources[0].read(1) is not None


def test_tracks_begin_anew(folder: Path) -> None:
    pytest.importorskip("trackers")

    class Sure(NotingModel):
        def detect(self, clip):
            found = super().detect(clip)
            found.scores = found.scores * 0 + 0.9
            return found

    detector = VideoDetector(make_cfg(), Sure())
    results = list(detector.detect([folder / "a.mp4", folder / "deep" / "b.mp4"], track=True))
    assert [result.track_ids for result in results[3:7]] == [[1], [1], [None], [1]]


def test_one_that_cannot_be_read_is_told_at_its_turn(folder: Path) -> None:
    results = VideoDetector(make_cfg(), NotingModel()).detect([folder / "a.mp4", folder / "none"])
    assert [next(results).index for _ in range(5)] == list(range(5))
    with pytest.raises(DataError, match="none: no such video"):
        next(results)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        next(VideoDetector(make_cfg(), NotingModel()).detect(tmp_path))
