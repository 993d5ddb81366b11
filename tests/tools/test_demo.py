"""tools/demo.py from end to end, with a detector of the quick schedules as it is initialised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from encoded_videos import encode, moving_pictures, play
from tiny_videos import CLASSES, TinyVideos
from tool_modules import import_tool

import clab_d2.video
from clab_d2.data import build_vid_test_loader
from clab_d2.engine.launch import load_config
from clab_d2.evaluation import Detections, GroundTruth, VIDEvaluator
from clab_d2.visualization import DrawStyle

demo = import_tool("demo")


@pytest.fixture(scope="module")
def options(
    tiny: TinyVideos, config_file: str, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Config options with weights that give every class a chance."""
    options = [*tiny.options, "MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    torch.manual_seed(0)
    model = build_model(load_config(config_file, options))
    weights = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save({"model": model.state_dict()}, weights)
    return [*options, "MODEL.WEIGHTS", str(weights)]


def run(config_file: str, options: list[str], *arguments: object) -> int:
    return demo.main(["--config-file", config_file, *map(str, arguments), "--opts", *options])


def test_a_video_in_a_video_out(
    config_file: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = encode(tmp_path / "in.mp4", moving_pictures(7, 64, 96))
    out, found = tmp_path / "new" / "out.mp4", tmp_path / "found.json"
    assert run(config_file, options, "--input", clip, "--output", out, "--json", found,
               "--score-threshold", "0.0", "--scale", 1) == 0  # fmt: skip
    output = capsys.readouterr()
    assert f"7 frames written to {out}" in output.out
    assert " detections of at least 0\n" in output.out
    assert "7/7" in output.err  # the progress bar
    drawn, before = play(out), play(clip)
    assert len(drawn) == 7
    assert drawn[0].shape == before[0].shape
    assert np.abs(drawn[3].astype(int) - before[3]).max() > 60  # something is drawn
    records = json.loads(found.read_text())
    assert sorted({record["frame_id"] for record in records}) == list(range(7))
    assert {record["category"] for record in records} <= set(CLASSES)


@pytest.mark.parametrize("method", ["bytetrack", "botsort"])
def test_tracks_are_drawn_and_post_processing_comes_first(
    method: str, config_file: str, options: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The detector knows nothing, so that scores are low: what matters is that all of it runs."""
    clip = encode(tmp_path / "in.mp4", moving_pictures(5, 64, 96))
    options = [*options, "TEST.POSTPROCESS.NAME", "seq_nms"]
    out = tmp_path / "out.mp4"
    styles: list[DrawStyle] = []
    monkeypatch.setattr(demo, "DrawStyle", lambda *a: styles.append(DrawStyle(*a)) or styles[-1])
    assert run(config_file, options, "--input", clip, "--output", out, "--track", method) == 0
    assert len(play(out)) == 5
    assert styles[0].colour_by == "track"
    assert "no detection of at least 0.5, the best has 0." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(config_file, options, "--input", clip, "--output", out, "--track", "best")


@pytest.mark.parametrize("sampling", ["adaptive", "fixed", "causal"])
def test_detections_are_those_of_the_evaluation(
    sampling: str, tiny: TinyVideos, config_file: str, options: list[str], tmp_path: Path
) -> None:
    options = [*options, "TEST.REFERENCES.SAMPLING", sampling, "TEST.KEY_FRAMES_PER_BATCH", "2"]
    cfg = load_config(config_file, options)
    detector = clab_d2.video.VideoDetector(cfg)
    with torch.no_grad():
        expected = [
            result["instances"]
            for batch in build_vid_test_loader(cfg, "tiny")
            for result in detector.model(batch)
        ]
    ours = [
        result.instances
        for folder in sorted(tiny.image_root.iterdir())
        for result in detector.detect(folder)
    ]
    assert len(ours) == len(expected) == tiny.num_frames
    assert sum(map(len, ours)) > tiny.num_frames
    for mine, theirs in zip(ours, expected, strict=True):
        assert torch.equal(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(mine.scores, theirs.scores)
        assert torch.equal(mine.pred_classes, theirs.pred_classes)


def test_as_a_command_a_folder_in_a_folder_out_online(
    repo_root: Path, tiny: TinyVideos, config_file: str, options: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, repo_root / "tools" / "demo.py", "--config-file", config_file]
    command += ["--input", tiny.image_root / "v1", "--output", tmp_path / "out"]
    command += ["--online", "--max-frames", "4", "--opts", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo_root, check=False)
    assert done.returncode == 0, done.stderr
    written = sorted(picture.name for picture in (tmp_path / "out").iterdir())
    assert written == [f"{n:06d}.jpg" for n in range(4)]


@pytest.mark.parametrize(("is_camera", "status"), [(True, 0), (False, 130)])
def test_ctrl_c_keeps_what_was_written(
    is_camera: bool, status: int, config_file: str, options: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pictures = moving_pictures(6, 64, 96)

    kind = clab_d2.video.StreamSource if is_camera else clab_d2.video.SequenceSource

    class Interrupted(kind):
        def read(self, index: int) -> np.ndarray:
            if index == 4:
                raise KeyboardInterrupt
            return super().read(index)

    source = Interrupted(iter(pictures) if is_camera else pictures)
    if not is_camera:
        options = [*options, "TEST.REFERENCES.SAMPLING", "causal"]
    monkeypatch.setattr(demo, "open_video", lambda name: source)
    out, found = tmp_path / "out.mp4", tmp_path / "found.json"
    arguments = ("--input", "0", "--output", out, "--json", found)
    assert run(config_file, options, *arguments) == status
    assert "4 frames written" in capsys.readouterr().out
    assert len(play(out)) == 4
    assert {record["frame_id"] for record in json.loads(found.read_text())} == {0, 1, 2, 3}


def test_every_format_and_what_evaluate_makes_of_it(
    tiny: TinyVideos, config_file: str, options: list[str], tmp_path: Path
) -> None:
    """The videos' detections are to evaluate.py those of the evaluation."""
    options = [*options, "OUTPUT_DIR", str(tmp_path / "eval")]
    files = []
    for folder in sorted(tiny.image_root.iterdir()):
        out = tmp_path / folder.name
        files.append(out / "f.json")
        arguments = ["--input", folder, "--json", files[-1], "--csv", out / "f.csv"]
        arguments += ["--mot", out / "f.txt", "--cvat", out / "f.xml", "--yolo", out / "yolo"]
        assert run(config_file, options, *arguments, "--labelme", out / "labelme") == 0
        written = {path.name for path in out.iterdir()}
        assert written == {"f.json", "f.csv", "f.txt", "f.xml", "yolo", "labelme"}
        number = len(json.loads(files[-1].read_text()))
        assert len((out / "f.csv").read_text().splitlines()) == number + 1
        assert len((out / "f.txt").read_text().splitlines()) == number
    joined = tmp_path / "all.json"
    joined.write_text(json.dumps([r for file in files for r in json.loads(file.read_text())]))
    cfg = load_config(config_file, options)
    evaluator = VIDEvaluator("tiny", tmp_path / "eval")
    model = clab_d2.video.VideoDetector(cfg).model
    inference_on_dataset(model, build_vid_test_loader(cfg, "tiny"), evaluator)
    truth = GroundTruth.from_file(tiny.json_file)
    ours = Detections.from_file(joined, truth)
    theirs = Detections.from_file(tmp_path / "eval" / "predictions.json", truth)
    assert len(ours.image) > 100 and len(set(ours.class_index.tolist())) == len(CLASSES)
    assert np.array_equal(ours.image, theirs.image)
    assert np.array_equal(ours.class_index, theirs.class_index)
    assert np.allclose(ours.box, theirs.box, atol=0.01)
    assert np.allclose(ours.score, theirs.score, atol=1e-4)
    command = ["--annotations", tiny.json_file, "--predictions", joined]
    assert import_tool("evaluate").main([*map(str, command)]) == 0


def test_mistakes_are_one_line(
    tiny: TinyVideos, config_file: str, options: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = str(tiny.image_root / "v1")
    (tmp_path / "file").write_text("no video")
    (tmp_path / "empty").mkdir()
    good: dict[str, Any] = {"--input": folder, "--output": str(tmp_path / "o.mp4")}
    for change, message in (
        ({"--input": str(tmp_path / "gone.mp4")}, "no such video, folder or camera"),
        ({"--input": str(tmp_path / "file")}, "cannot be opened as a video"),
        ({"--input": str(tmp_path / "empty")}, "the folder holds no pictures"),
        ({"--output": str(tmp_path / "o.gif")}, "cannot write .gif"),
        ({"--output": str(tmp_path / "file" / "o.mp4")}, "cannot be written"),
        ({"--output": folder}, "is the input"),
        ({"--csv": folder}, "is the input"),
        ({"--yolo": str(tmp_path / "file")}, "cannot be made a folder"),
        ({"--score-threshold": 50}, "--score-threshold is 50"),
        ({"--json": str(tmp_path / "file" / "o.json")}, "cannot be written"),
    ):
        arguments = [part for item in (good | change).items() for part in item]
        assert run(config_file, options, *arguments) == 2, message
        error = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("error: ")]
        assert len(error) == 1 and message in error[0], error
    arguments = [part for item in good.items() for part in item]
    assert run(config_file, options, *arguments, "--appearance") == 2
    lines = capsys.readouterr().err.splitlines()  # of its own, not behind a bar of progress
    assert "error: appearance serves tracks only: ask for these, too (--track)" in lines
    gone = [*options, "MODEL.WEIGHTS", str(tmp_path / "gone.pth")]
    for opts, message in ((gone, "gone.pth"), ([*options, "MODEL.WEIGHTS", ""], "is empty")):
        assert run(config_file, opts, *arguments) == 2
        assert message in capsys.readouterr().err
    # Nothing is left of any of these.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file"]
