"""tools/detect_videos.py over a folder, with a detector that only notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Instances
from encoded_videos import encode, moving_pictures, play
from numbered_frames import write_pictures
from stub_detector import NotingModel, make_cfg
from tool_modules import import_tool
from two_scenes import CUT, two_scenes

from clab_d2.video import VideoDetector, find_videos

tool = import_tool("detect_videos")


class WeakModel(NotingModel):
    """Finds what the noting model does, with a score of 0.25."""

    def detect(self, clip: dict[str, Any]) -> Instances:
        found = super().detect(clip)
        found.scores = torch.full((len(found),), 0.25)
        return found


class Runs:
    """The tool on a folder of two clips, one that is broken, and a folder of pictures."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.videos, self.results = folder / "videos", folder / "results"
        (self.videos / "deep").mkdir(parents=True)
        encode(self.videos / "a.mp4", moving_pictures(5))
        encode(self.videos / "deep" / "b.mp4", moving_pictures(3))
        write_pictures(self.videos / "pictures", [f"{n}.png" for n in range(4)])
        (self.videos / "broken.mp4").write_text("no video")
        self.seen: list[str] = []
        monkeypatch.setattr(VideoDetector, "from_file", self.from_file)
        self.detector = VideoDetector(make_cfg(), NotingModel(), ["thing"])
        self.class_names = self.detector.class_names
        self.stop_in: str | None = None
        self.runtime: str | None = None

    def from_file(self, path, options, runtime):
        self.runtime = runtime
        return self

    def detect(self, source, mode, **options):
        self.seen.append(Path(source.name).name)
        for result in self.detector.detect(source, mode, **options):
            if result.index == 2 and self.seen[-1] == self.stop_in:
                raise KeyboardInterrupt
            yield result

    def __call__(self, *arguments: str) -> int:
        words = ["--weights", "w", "--input", str(self.videos), "--output", str(self.results)]
        return tool.main([*words, *arguments])

    @property
    def written(self) -> set[str]:
        files = [p for p in self.results.rglob("*") if p.is_file()]
        return {str(p.relative_to(self.results)) for p in files}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, monkeypatch)


ALL = {"a.mp4.json", "deep/b.mp4.json", "pictures.json"}


def test_a_bad_video_does_not_stop_the_others(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs() == 1
    assert runs.written == ALL
    output = capsys.readouterr()
    assert "broken.mp4: cannot be opened as a video" in output.err
    assert "3 videos written" in output.out and "1 failed" in output.out
    assert len(json.loads((runs.results / "a.mp4.json").read_text())) == 5
    (runs.videos / "broken.mp4").unlink()
    runs.seen.clear()
    assert runs() == 0  # all is done
    assert runs.seen == []


def test_how_many_are_shown_is_told(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clab_d2")
    runs.detector = VideoDetector(make_cfg(), WeakModel(), ["thing"])
    runs("--part", "1/4")
    runs("--part", "3/4", "--score-threshold", "0.2")
    told = [r for r in caplog.records if r.name == "clab_d2.video.many_videos"]
    assert [record.levelname for record in told] == ["WARNING", "INFO"]
    assert "a.mp4: no detection of at least 0.5, the best has 0.25" in told[0].getMessage()
    assert "b.mp4: 3 detections of at least 0.2" in told[1].getMessage()


def test_linked_folders_are_followed_but_not_for_ever(runs: Runs, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "frames"
    elsewhere.parent.mkdir()
    (runs.videos / "pictures").rename(elsewhere)
    (runs.videos / "broken.mp4").unlink()
    (runs.videos / "pictures").symlink_to(elsewhere)
    (runs.videos / "linked").symlink_to(elsewhere.parent)
    # Loops: to where it is, to all above, and there and back.
    (runs.videos / "deep" / "again").symlink_to(runs.videos)
    (runs.videos / "deep" / "root").symlink_to(tmp_path)
    (elsewhere.parent / "back").symlink_to(runs.videos)
    found = {str(p.relative_to(runs.videos)) for p in find_videos(runs.videos)}
    assert found == {"a.mp4", "deep/b.mp4", "pictures", "linked/frames"}
    assert runs() == 0
    assert runs.written == ALL | {"linked/frames.json"}


def test_goes_on_where_it_stopped(runs: Runs) -> None:
    (runs.videos / "broken.mp4").unlink()
    runs.stop_in = "b.mp4"
    assert runs() == 130
    assert runs.written == {"a.mp4.json", "deep/b.mp4.partial.json"}
    runs.stop_in = None
    runs.seen.clear()
    assert runs() == 0
    assert runs.seen == ["b.mp4", "pictures"]
    assert runs.written == ALL


def test_drawn_and_in_parts(runs: Runs) -> None:
    (runs.videos / "broken.mp4").unlink()
    arguments = ("--format", "cvat", "--draw")
    assert runs("--part", "1/2", *arguments) == 0
    assert runs.written == {"a.mp4.xml", "a.mp4.drawn.mp4", "pictures.xml", "pictures.drawn.mp4"}
    assert runs("--part", "2/2", *arguments) == 0
    assert runs.seen == ["a.mp4", "pictures", "b.mp4"]
    assert len(play(runs.results / "deep" / "b.mp4.drawn.mp4")) == 3


def test_the_runtime_of_an_exported_model_is_passed_on(runs: Runs) -> None:
    assert runs("--runtime", "openvino") == 1
    assert runs.runtime == "openvino"


def test_shots(runs: Runs) -> None:
    """Frames of another shot would change what the noting detector scores a frame with."""
    pytest.importorskip("scenedetect")
    (runs.videos / "broken.mp4").unlink()
    encode(runs.videos / "a.mp4", two_scenes((48, 64)))
    assert runs("--shots") == 0
    apart = [found["score"] for found in json.loads((runs.results / "a.mp4.json").read_text())]
    assert runs("--output", str(runs.results / "blind")) == 0
    blind = json.loads((runs.results / "blind" / "a.mp4.json").read_text())
    assert max(apart[:CUT]) < min(found["score"] for found in blind[:CUT]) < min(apart[CUT:])


def test_mistakes_are_one_line(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--part", "3/2"], "write I/N"),
        (["--score-threshold", "7"], "must be from 0 to 1"),
        (["--input", str(runs.videos / "none")], "holds no video"),
    ):
        assert runs(*arguments) == 2
        assert message in capsys.readouterr().err
