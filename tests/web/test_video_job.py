"""Detection in a video for the page: limits, files, drawings, and what is summed up."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from encoded_videos import encode, moving_pictures, play
from stub_detector import NotingModel, make_cfg

from clab_d2.engine.launch import load_config
from clab_d2.errors import DataError
from clab_d2.video import VideoDetector
from clab_d2.visualization import track_colour
from clab_d2.web.objects import TABLE_HEADERS, html_table, sum_up, table_of, timeline_figure
from clab_d2.web.video_job import Limits, Progress, VideoJob


@pytest.fixture(scope="module")
def detector(repo_root: Path) -> VideoDetector:
    path = repo_root / "configs" / "quick_schedules" / "clab_quick.yaml"
    options = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cfg = load_config(str(path), options, needs_datasets=False)
    torch.manual_seed(0)
    names = [f"thing {n}" for n in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    return VideoDetector(cfg, build_model(cfg), names)


@pytest.fixture
def job(tmp_path: Path) -> VideoJob:
    clip = encode(tmp_path / "clip.mp4", moving_pictures(7, 64, 96))
    folder = tmp_path / "results"
    folder.mkdir()
    return VideoJob("model", clip, folder)


def test_detection_tells_how_far_it_is_and_writes(job: VideoJob, detector: VideoDetector) -> None:
    progress = list(job.detect(detector, Limits()))
    assert [(p.done, p.total) for p in progress] == [(n, 7) for n in range(1, 8)]
    assert progress[0].frames_per_second is None
    assert progress[-1].frames_per_second > 0 and job.seconds > 0
    expected = list(detector.detect(job.video))
    assert [len(found) for found in job.instances] == [len(r.instances) for r in expected]
    number = sum(map(len, job.instances))
    assert len(json.loads(job.json_file.read_text())) == number > 7
    assert len(list(csv.DictReader(job.csv_file.open()))) == number


def test_a_threshold_redraws_without_the_detector(job: VideoJob, detector: VideoDetector) -> None:
    for _ in job.detect(detector, Limits()):
        pass
    low = job.draw(0.0)
    many = play(low)
    high = job.draw(0.99)
    few = play(high)
    assert low.name != high.name and not low.exists()  # the old one is gone
    assert len(many) == len(few) == 7
    # Small frames are enlarged until labels can be read.
    assert few[0].shape[0] >= 400
    assert np.abs(many[3].astype(int) - few[3]).max() > 60


def test_a_stopped_detection_leaves_nothing(job: VideoJob, detector: VideoDetector) -> None:
    running = job.detect(detector, Limits())
    next(running)
    assert list(job.folder.iterdir())
    running.close()
    assert not list(job.folder.iterdir())
    assert len(list(job.detect(detector, Limits()))) == 7  # and the detector can go on


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(seconds=0.2), r"lasts 0\.3 s; this page takes up to 0\.2 s"),
        (Limits(megabytes=0.001), r"MB; this page takes up to 0\.001 MB"),
        (Limits(pixels=5000), "96x64 pixels"),
    ],
)
def test_limits(job: VideoJob, detector: VideoDetector, limits: Limits, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(job.detect(detector, limits))
    assert not list(job.folder.iterdir())


def test_progress_for_a_person() -> None:
    assert Progress(1, 100, None).sentence == "frame 1 of 100"
    assert Progress(60, 100, 8.0).sentence == "frame 60 of 100, 8.0 frames/s, 5 s left"


def found(*rows: tuple[int, float], tracks: list[int] | None = None) -> Instances:
    instances = Instances((64, 96))
    instances.pred_boxes = Boxes(torch.zeros(len(rows), 4))
    instances.pred_classes = torch.tensor([row[0] for row in rows], dtype=torch.long)
    instances.scores = torch.tensor([row[1] for row in rows], dtype=torch.float)
    if tracks is not None:
        instances.track_ids = torch.tensor(tracks, dtype=torch.long)
    return instances


def made(*frames: Instances) -> VideoJob:
    return VideoJob("m", Path("v.mp4"), Path("."), ["cat", "dog"], 10.0, list(frames))


def test_objects_by_class() -> None:
    job = made(
        found((1, 0.9), (1, 0.6), (0, 0.4)), found((1, 0.8)), found(), found((1, 0.7), (0, 0.95))
    )
    dog, cat = sum_up(job, 0.5)
    assert (dog.label, dog.frames, dog.most) == ("dog", [0, 1, 3], 2)
    assert dog.best == pytest.approx(0.9) and dog.mean == pytest.approx(0.75)
    assert dog.spans == [(0, 2), (3, 1)]
    assert (cat.label, cat.frames) == ("cat", [3])
    table = table_of([dog, cat], 10.0)
    assert table[0] == ["dog", "0.3", "0.0", "0.4", 2, "90%", "75%"]
    assert all(len(row) == len(TABLE_HEADERS) for row in table)
    assert sum_up(job, 0.99) == []


def test_objects_by_track() -> None:
    job = made(
        found((1, 0.9), (1, 0.6), tracks=[4, 2]), found((1, 0.8), (1, 0.7), tracks=[4, -1])
    )
    job.tracked = True
    rows = sum_up(job, 0.5)
    assert [(row.label, row.frames, row.colour) for row in rows] == [
        ("dog #4", [0, 1], track_colour(4)),
        ("dog #2", [0], track_colour(2)),
        ("dog (no track)", [1], track_colour(-1)),
    ]
    bars = timeline_figure([(job, rows)]).axes[0].collections
    colours = [tuple(round(255 * part) for part in bar.get_facecolor()[0][:3]) for bar in bars]
    assert colours == [row.colour for row in rows]
    red, green, blue = track_colour(4)
    assert f"#{red:02x}{green:02x}{blue:02x}" in html_table([(job, rows)])


def test_tracks_are_detected_and_drawn_in_their_colours(job: VideoJob) -> None:
    """Of one class, so that only a track's colour can tell the boxes apart."""
    detector = VideoDetector(make_cfg(), TwoBoxes(), ["thing"])
    for _ in job.detect(detector, Limits(), track=True):
        pass
    assert job.instances[-1].track_ids.tolist() == [1, 2]
    rows = list(csv.DictReader(job.csv_file.open()))
    assert {row["track_id"] for row in rows} == {"", "1", "2"}
    last = play(job.draw(0.5))[-1]
    scale = last.shape[0] // 64
    for number, (x, y) in ((1, (20, 55)), (2, (76, 55))):  # the lower edges of the boxes
        edge = last[(y - 3) * scale : (y + 3) * scale, x * scale].astype(int)
        away = [np.abs(edge - track_colour(n)).max(axis=1).min() for n in (1, 2)]
        assert np.argmin(away) + 1 == number


class TwoBoxes(NotingModel):
    """Two objects that stand still."""

    def forward(self, clips: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        found = Instances((64, 96))
        found.pred_boxes = Boxes(torch.tensor([[8.0, 30, 32, 55], [64, 30, 88, 55]]))
        found.scores = torch.tensor([0.9, 0.8])
        found.pred_classes = torch.zeros(2, dtype=torch.long)
        return [{"instances": found} for _ in clips]


def test_the_pages_table_names_the_models_where_there_are_two() -> None:
    job = made(found((1, 0.9)))
    job.class_names[1] = "<b>dog</b>"
    rows = sum_up(job, 0.5)
    one, two = html_table([(job, rows)]), html_table([(job, rows), (job, rows)])
    assert one.count("<tr>") == 2 and two.count("<tr>") == 3
    assert "<th>model</th>" not in one and "<th>model</th>" in two
    assert "&lt;b&gt;dog&lt;/b&gt;" in one
    assert "lower the threshold" in html_table([(job, [])])


def test_timeline_has_a_bar_for_each_stretch() -> None:
    job = made(found((1, 0.9)), found(), found((1, 0.8), (0, 0.9)))
    figure = timeline_figure([(job, sum_up(job, 0.5)), (job, [])])
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["dog", "cat"]
    assert [len(bars.get_paths()) for bars in first.collections] == [2, 1]
    assert first.get_xlim() == pytest.approx((0, 0.3))
    assert not second.collections
