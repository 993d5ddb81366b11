"""Bad data given to tools/train_net.py: what ends a job at once, in one line, and what it survives.

What each module says of bad data is in its own tests; here it is what a user sees.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from detectron2.modeling import build_model
from encoded_videos import encode, moving_pictures
from test_train_net import run_here
from tiny_videos import TinyVideos, make_tiny_videos

from clab_d2.engine.launch import load_config

Json = dict[str, Any]


@pytest.fixture
def videos(tmp_path: Path) -> TinyVideos:
    """Videos of 5, 3 and 1 frames."""
    return make_tiny_videos(tmp_path)


@pytest.fixture
def job(
    videos: TinyVideos, config_file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, list[str]]]:
    """Train 2 iterations and evaluate; exit status, log, and the lines that tell an error."""

    def run(*options: str, flags: tuple[str, ...] = ()) -> tuple[int, str, list[str]]:
        output = tmp_path / "out"
        shutil.rmtree(output, ignore_errors=True)
        fixed = ["SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1000"]
        fixed += ["OUTPUT_DIR", str(output), "SEED", "1"]
        arguments = ["--config-file", config_file, *flags, *videos.options, *fixed, *options]
        status = run_here(arguments)
        printed, errors = capfd.readouterr()
        assert "Traceback" not in printed + errors
        log = output / "log.txt"
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        return status, log.read_text() if log.exists() else "", lines

    return run


def change(videos: TinyVideos, edit: Callable[[Json], Any]) -> None:
    data = json.loads(videos.json_file.read_text())
    edit(data)
    videos.json_file.write_text(json.dumps(data))


def keep_only(videos: TinyVideos, video_id: int) -> None:
    """Leave one video in the JSON, so that it is known which frames a training meets."""

    def edit(data: Json) -> None:
        data["videos"] = [v for v in data["videos"] if v["id"] == video_id]
        data["images"] = [i for i in data["images"] if i["video_id"] == video_id]
        images = {i["id"] for i in data["images"]}
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in images]

    change(videos, edit)


def evaluated(tmp_path: Path) -> tuple[Json, set[int]]:
    """Metrics, and the images with detections."""
    folder = tmp_path / "out" / "inference" / "tiny"
    predictions = json.loads((folder / "predictions.json").read_text())
    return json.loads((folder / "metrics.json").read_text()), {p["image_id"] for p in predictions}


def _cut_off(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:-200])


def _other_size(picture: Path) -> None:
    cv2.imwrite(str(picture), cv2.resize(cv2.imread(str(picture)), (80, 40)))


# how the second of three frames is bad -> (how it is made so, what is said of it)
BAD_FRAMES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "corrupt": (_cut_off, "not a whole picture"),
    "missing": (Path.unlink, "no such frame; fetch it, or correct"),
    "of another size": (_other_size, "is 80x40, but the annotations say 96x64; correct the"),
}


@pytest.mark.parametrize("fault", BAD_FRAMES)
def test_a_bad_frame_is_survived_counted_and_reported(
    fault: str, videos: TinyVideos, job: Callable[..., Any], tmp_path: Path
) -> None:
    keep_only(videos, 2)
    picture = videos.image_root / "v2" / "000001.jpg"
    spoil, said = BAD_FRAMES[fault]
    spoil(picture)
    # Enough key frames that each of the three comes; every clip asks for its neighbours.
    status, log, errors = job("SOLVER.IMS_PER_BATCH", "4")
    assert (status, errors) == (0, [])
    assert said in log and log.count(f"Frame left out: {picture}") == 1
    at_end = f"1 frame(s) could not be read and were left out: {picture}"
    assert log.count(at_end) == 2, "at the end of the training, and of the evaluation"
    assert (
        "1 of 3 frames of tiny could not be read and count as frames without detections: "
        f"{picture}" in log
    )
    metrics, found = evaluated(tmp_path)
    assert 7 not in found and found <= {6, 8}, "the bad frame, image 7, has no detections"
    assert metrics["vid"]["AP50"] is not None

    status, log, errors = job("SOLVER.IMS_PER_BATCH", "4", "DATALOADER.STRICT", "True")
    assert status == 2 and len(errors) == 1
    assert str(picture) in errors[0] and said in errors[0]


def test_a_video_without_frames_is_left_out(videos: TinyVideos, job: Callable[..., Any]) -> None:
    change(videos, lambda data: data["videos"].append({"id": 9, "name": "nothing"}))
    status, log, errors = job()
    assert (status, errors) == (0, [])
    assert f"{videos.json_file}: 1 video(s) have no frame and are left out: nothing" in log


@pytest.mark.parametrize("strict", [False, True])
def test_an_empty_video_file(
    strict: bool, videos: TinyVideos, job: Callable[..., Any], tmp_path: Path
) -> None:
    """Without a byte: there, so that only reading it shows what is wrong."""
    shutil.rmtree(videos.image_root / "v2")
    (videos.image_root / "v2.mp4").touch()
    strictness = ("DATALOADER.STRICT", "True") if strict else ()
    status, log, errors = job("SOLVER.IMS_PER_BATCH", "9", *strictness)
    said = f"{videos.image_root}/v2.mp4: cannot be opened as a video"
    if strict:
        assert status == 2 and len(errors) == 1 and said in errors[0]
        return
    assert (status, errors) == (0, [])
    assert said in log
    assert "3 frame(s) could not be read and were left out" in log
    assert evaluated(tmp_path)[1].isdisjoint({6, 7, 8})


def test_a_video_whose_size_changes_midway(
    videos: TinyVideos, job: Callable[..., Any], tmp_path: Path
) -> None:
    """With the JSON knowing it: nothing is wrong then."""
    keep_only(videos, 1)
    for number in (3, 4):
        _other_size(videos.image_root / "v1" / f"{number:06d}.jpg")

    def edit(data: Json) -> None:
        for image in data["images"][3:]:
            image.update(width=80, height=40)

    change(videos, edit)
    status, log, errors = job("SOLVER.IMS_PER_BATCH", "5")
    assert (status, errors) == (0, [])
    assert "could not be read" not in log and "left out:" not in log
    assert evaluated(tmp_path)[1] & {4, 5}, "frames after the change are detected in, too"


def test_a_video_file_whose_size_changes_midway(
    videos: TinyVideos, job: Callable[..., Any], tmp_path: Path
) -> None:
    """Two recordings joined into one file: the frames after the seam contradict the JSON."""
    keep_only(videos, 1)
    shutil.rmtree(videos.image_root / "v1")
    parts = [moving_pictures(3, 64, 96), moving_pictures(2, 40, 80)]
    raw = b""
    for number, part in enumerate(parts):
        raw += encode(tmp_path / f"{number}.ts", part, b_frames=0).read_bytes()
    (videos.image_root / "v1.ts").write_bytes(raw)
    status, log, errors = job("SOLVER.IMS_PER_BATCH", "5")
    assert (status, errors) == (0, [])
    for number in (3, 4):
        assert f"v1.ts#{number}: the picture is 80x40, but the annotations say 96x64; corr" in log
    assert "2 frame(s) could not be read and were left out" in log
    assert evaluated(tmp_path)[1] <= {1, 2, 3}


ENDS: dict[str, tuple[Callable[[TinyVideos], Any], str]] = {
    "truncated annotations": (
        lambda v: v.json_file.write_text(v.json_file.read_text()[:900]),
        "tiny.json: not a whole JSON file (.*); it was cut off or damaged, fetch or make it again",
    ),
    "no annotations": (
        lambda v: change(v, lambda data: data.update(annotations=[])),
        "tiny.json: no frame is annotated, so there is nothing to learn or to measure; add annot",
    ),
    "no annotated frame": (
        lambda v: change(v, lambda d: [image.update(annotated=False) for image in d["images"]]),
        'tiny.json: no frame is annotated, .* or remove "annotated": false',
    ),
    "no frames": (
        lambda v: change(v, lambda data: data.update(images=[], annotations=[])),
        'tiny.json: "images" is empty; the dataset has no frame',
    ),
    "another number of classes": (
        lambda v: change(v, lambda d: d["categories"].append({"id": 9, "name": "ring"})),
        r"ROI_HEADS.NUM_CLASSES is 3, but dataset 'tiny' has 4 class\(es\); set MODEL.ROI_HEADS",
    ),
    "no frame there": (
        lambda v: shutil.rmtree(v.image_root),
        r"frames: none of 3 frame\(s\) looked for is there, .*; correct the image folder of",
    ),
}


@pytest.fixture(scope="module")
def weights(tiny: TinyVideos, config_file: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    model = build_model(load_config(config_file, [*tiny.options, "MODEL.DEVICE", "cpu"]))
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("flags", [(), ("--eval-only",)])
@pytest.mark.parametrize("fault", ENDS)
def test_what_ends_a_job_at_its_start(
    fault: str, flags: tuple[str, ...], videos: TinyVideos, weights: str, job: Callable[..., Any]
) -> None:
    spoil, message = ENDS[fault]
    spoil(videos)
    status, log, errors = job("MODEL.WEIGHTS", weights, flags=flags)
    assert status == 2 and len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert "Starting training" not in log and "Start inference" not in log


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("proposal_generator.")],
            r"lacks 6 of the model's \d+ weights \(proposal_generator\)",
        ),
        (
            lambda w: [v.fill_(torch.nan) for v in w.values() if v.is_floating_point()],
            r"holds NaN or infinity",
        ),
    ],
)
def test_weights_that_cannot_be_evaluated(
    spoil: Callable[[dict], Any],
    message: str,
    videos: TinyVideos,
    weights: str,
    job: Callable[..., Any],
    tmp_path: Path,
) -> None:
    state = torch.load(weights)["model"]
    spoil(state)
    torch.save({"model": state}, tmp_path / "spoilt.pth")
    arguments = ("MODEL.WEIGHTS", str(tmp_path / "spoilt.pth"))
    status, log, errors = job(*arguments, flags=("--eval-only",))
    assert status == 2 and len(errors) == 1
    assert re.search(rf"spoilt.pth: .*{message}", errors[0]), errors[0]
    assert "Start inference" not in log
