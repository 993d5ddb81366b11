"""tools/train_net.py from end to end, on a few tiny frames."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from detectron2.utils.logger import setup_logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_videos import TinyVideos, make_tiny_videos

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import train_net  # noqa: E402

Arguments = Callable[..., list[str]]
ON_CPU = ["MODEL.DEVICE", "cpu"]
#: Long enough to be killed in the middle, checkpoints at iterations 1, 3, 5, ...
LONG = ["SOLVER.MAX_ITER", "16", "MODEL.CONTRASTIVE.WEIGHT.STEPS", "10", "DATASETS.TEST", "()"]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> TinyVideos:
    return make_tiny_videos(tmp_path_factory.mktemp("tiny_videos"))


@pytest.fixture(scope="session")
def arguments(videos: TinyVideos) -> Arguments:
    """Makes the command line of a config on the tiny videos."""

    def make(
        config: str, output: Path, flags: Sequence[str] = (), options: Sequence[str] = ()
    ) -> list[str]:
        path = ROOT / "configs" / "quick_schedules" / f"{config}.yaml"
        return [
            *("--config-file", str(path)),
            *flags,
            *videos.options,
            *("OUTPUT_DIR", str(output)),
            *options,
        ]

    return make


@pytest.fixture(scope="session")
def trained(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of CLAB's training, 4 iterations, and evaluation."""
    output = tmp_path_factory.mktemp("trained")
    assert run_here(arguments("clab_quick", output)) == 0
    return output


def run_here(arguments: Sequence[str]) -> int:
    """Run the tool in this process, which saves the time of its imports."""
    args = train_net.argument_parser().parse_args(list(arguments))
    try:
        return train_net.run(train_net.train_or_evaluate, args)
    finally:
        # Log handlers outlive the run, but not what pytest has put in the place of stdout.
        for name in ("detectron2", "fvcore", "clab_d2"):
            logging.getLogger(name).handlers.clear()
        setup_logger.cache_clear()


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Run the tool in a process (group) of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "train_net.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def rows(output: Path) -> list[dict[str, float]]:
    """Rows of training iterations in metrics.json."""
    lines = (output / "metrics.json").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "lr" in row]


def schedule(output: Path) -> list[tuple[float, float, float]]:
    return [(row["iteration"], row["lr"], row["contrastive/weight"]) for row in rows(output)]


def results(output: Path) -> tuple[object, object]:
    folder = output / "inference" / "tiny"
    metrics, predictions = ((folder / f"{n}.json").read_text() for n in ("metrics", "predictions"))
    return json.loads(metrics), json.loads(predictions)


def wait_for_rows(process: subprocess.Popen[str], output: Path, number: int) -> None:
    """Until the training has written so many complete rows."""
    path = output / "metrics.json"
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        if process.poll() is not None:
            pytest.fail(f"ended early:\n{process.communicate()[0]}")
        time.sleep(0.02)


def test_losses_and_contrastive_weight_are_logged(trained: Path) -> None:
    losses = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "loss_contrastive"}
    wanted = {*losses, "total_loss", "lr", "contrastive/weight"}
    table = rows(trained)
    assert [row["iteration"] for row in table] == [0, 1, 2, 3]
    assert all(wanted <= row.keys() for row in table)
    assert [row["contrastive/weight"] for row in table] == pytest.approx(
        [0.005, 0.005 * 2 / 3, 0.005 / 3, 0]
    )
    events = EventAccumulator(str(trained))
    events.Reload()
    assert wanted <= set(events.Tags()["scalars"])
    shown = [tag for tag in events.Tags()["images"] if tag.startswith("detections/tiny/")]
    assert len(shown) == 8  # of 9 frames
    weights = [event.value for event in events.Scalars("contrastive/weight")]
    assert weights == pytest.approx([row["contrastive/weight"] for row in table])


def test_checkpoints_and_evaluation_are_written(trained: Path, videos: TinyVideos) -> None:
    assert (trained / "last_checkpoint").read_text() == "model_0000003.pth"
    for name in ("model_0000001.pth", "model_0000003.pth", "model_final.pth", "config.yaml"):
        assert (trained / name).is_file()
    metrics, predictions = results(trained)
    assert {"AP", "AP50", "AP75"} <= metrics["bbox"].keys()
    assert {"AP50", "AP50-slow", "AP50-medium", "AP50-fast"} <= metrics["vid"].keys()
    assert 0 < len({p["image_id"] for p in predictions}) <= videos.num_frames


def test_eval_only_gives_what_training_ended_with(
    trained: Path, arguments: Arguments, tmp_path: Path
) -> None:
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    # The branch is off here: its weights in the file are not wanted, and nobody complains.
    branch_off = ["MODEL.CONTRASTIVE.ENABLED", "False"]
    evaluation = arguments("clab_quick", tmp_path, ["--eval-only"], [*weights, *branch_off])
    assert run_here(evaluation) == 0
    assert results(tmp_path) == results(trained)


@pytest.mark.parametrize(
    ("config", "losses"),
    [
        ("faster_rcnn", 4),
        ("selsa", 4),
        ("temporal_roi_align", 4),
        ("clab_fpn", 5),
        ("flow_guided", 4),
        ("clab_cascade", 9),
    ],
)
def test_every_kind_of_detector_trains(
    arguments: Arguments, tmp_path: Path, config: str, losses: int
) -> None:
    assert run_here(arguments(f"{config}_quick", tmp_path, (), ["SOLVER.MAX_ITER", "2"])) == 0
    assert len([key for key in rows(tmp_path)[-1] if key.startswith("loss_")]) == losses
    metrics, _ = results(tmp_path)
    assert 0 <= metrics["bbox"]["AP"] <= 100


@pytest.mark.parametrize("loss", ["ForegroundContrast", "TrackContrast", "ClassContrast"])
def test_every_contrastive_loss_trains_and_resumes(
    arguments: Arguments, tmp_path: Path, loss: str
) -> None:
    """References come with the truth that it needs, and it remembers over a stop."""
    keys = ["MODEL.CONTRASTIVE.LOSS", loss, "MODEL.CONTRASTIVE.MEMORY_SIZE", "100"]
    schedule = ["MODEL.CONTRASTIVE.WEIGHT.SCHEDULE", "constant", "DATASETS.TEST", "()"]
    for flags, iterations, remembered in (([], 2, 2), (["--resume"], 3, 3)):
        options = [*keys, *schedule, "SOLVER.MAX_ITER", str(iterations)]
        assert run_here(arguments("clab_quick", tmp_path, flags, options)) == 0
        assert rows(tmp_path)[-1]["contrastive/loss"] > 0
        # Two clips a step, of one object or more each; the size of a step is the loss's affair.
        state = torch.load(tmp_path / f"model_{iterations - 1:07d}.pth")["model"]
        held = int(state["contrastive_branch.loss.memory.state"][0])
        assert held >= 2 * remembered
    assert [row["iteration"] for row in rows(tmp_path)] == [0, 1, 2]


def test_training_killed_resumes_as_if_nothing_happened(
    arguments: Arguments, tmp_path: Path
) -> None:
    assert run_here(arguments("clab_quick", tmp_path / "whole", (), LONG)) == 0
    killed = tmp_path / "killed"
    process = start(arguments("clab_quick", killed, (), LONG))
    wait_for_rows(process, killed, 5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / "model_final.pth").exists()
    at = torch.load(killed / (killed / "last_checkpoint").read_text())["iteration"]
    assert at % 2 == 1
    before = rows(killed)
    assert run_here(arguments("clab_quick", killed, ["--resume"], LONG)) == 0
    assert schedule(killed) == schedule(tmp_path / "whole")
    # It went on from the checkpoint: what came before is as it was.
    assert rows(killed)[: at + 1] == before[: at + 1]


def test_sigterm_saves_a_checkpoint(arguments: Arguments, tmp_path: Path) -> None:
    never = ["SOLVER.CHECKPOINT_PERIOD", "1000", "SOLVER.MAX_ITER", "1000"]
    workers = ["DATALOADER.NUM_WORKERS", "1"]
    process = start(arguments("clab_quick", tmp_path, (), [*LONG, *never, *workers]))
    wait_for_rows(process, tmp_path, 2)
    # As a batch system does: to all processes of the job, data workers included.
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after iteration" in output
    assert "Traceback" not in output
    at = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text())["iteration"]
    assert rows(tmp_path)[-1]["iteration"] == at


def test_two_processes(trained: Path, arguments: Arguments, tmp_path: Path) -> None:
    """Training by gloo; evaluation gives what one process gives."""
    flags = ["--num-gpus", "2"]
    process = start(arguments("clab_quick", tmp_path / "two", flags, ON_CPU))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert schedule(tmp_path / "two") == schedule(trained)
    weights = ["MODEL.WEIGHTS", str(tmp_path / "two" / "model_final.pth")]
    assert run_here(arguments("clab_quick", tmp_path / "one", ["--eval-only"], weights)) == 0
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_two_processes_go_on_where_one_stopped(
    trained: Path, arguments: Arguments, tmp_path: Path
) -> None:
    """They share the same batch."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    flags = ["--num-gpus", "2", "--resume"]
    process = start(arguments("clab_quick", tmp_path, flags, [*ON_CPU, "DATASETS.TEST", "()"]))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Resuming at iteration 2 of 4" in output
    assert schedule(tmp_path) == schedule(trained)
    assert rows(tmp_path)[:2] == rows(trained)[:2]
    # With the batch that the number of processes asks for, it is refused.
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    scaled = ["SOLVER.REFERENCE_WORLD_SIZE", "2"]
    assert run_here(arguments("clab_quick", tmp_path, ["--resume"], scaled)) == 2


def test_signal_to_the_launcher_of_two_processes(arguments: Arguments, tmp_path: Path) -> None:
    never = ["SOLVER.CHECKPOINT_PERIOD", "1000", "SOLVER.MAX_ITER", "1000", *ON_CPU]
    process = start(arguments("clab_quick", tmp_path, ["--num-gpus", "2"], [*LONG, *never]))
    wait_for_rows(process, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert output.count("Stopped by SIGTERM after iteration") == 1
    assert "Traceback" not in output
    at = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text())["iteration"]
    assert rows(tmp_path)[-1]["iteration"] == at


@pytest.mark.parametrize(
    ("flags", "options", "parts"),
    [
        ([], ["SOLVER.MAX_ITERS", "3"], ["SOLVER.MAX_ITERS"]),
        ([], ["MODEL.ROI_HEADS.NUM_CLASSES", "30"], ["NUM_CLASSES 3", "'tiny'"]),
        ([], ["DATASETS.TRAIN", "('none',)"], ["'none'", "DATASETS.VID"]),
        ([], ["DATASETS.VID", "[['tiny', 'none.json', 'frames']]"], ["none.json"]),
        ([], ["MODEL.WEIGHTS", "none.pth"], ["none.pth"]),
        ([], ["INPUT.REFERENCES.NUM", "0"], ["INPUT.REFERENCES.NUM"]),
        (["--eval-only"], [], ["MODEL.WEIGHTS"]),
        (["--eval-only"], ["MODEL.WEIGHTS", "none.pth"], ["none.pth"]),
        (["--num-gpus", "0"], [], ["--num-gpus"]),
        (["--num-gpus", "3"], ON_CPU, ["SOLVER.IMS_PER_BATCH"]),
        (["--num-gpus", "8"], [], ["--num-gpus", "MODEL.DEVICE cpu"]),
        (["--num-machines", "2", "--machine-rank", "2"], ON_CPU, ["--machine-rank 2"]),
        ([], ["MODEL.DEVICE", "gpu"], ["MODEL.DEVICE", "'gpu'", "cuda"]),
        ([], ["OUTPUT_DIR", "/dev/null/out"], ["OUTPUT_DIR /dev/null/out"]),
        (["--num-machines", "2"], [], ["--dist-url"]),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: Arguments,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    flags: list[str],
    options: list[str],
    parts: list[str],
) -> None:
    assert run_here(arguments("clab_quick", tmp_path, flags, options)) == 2
    output, errors = capfd.readouterr()
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert all(part in lines[0] for part in parts)
    assert "Traceback" not in output + errors


def test_mistake_found_by_a_process_of_two(
    trained: Path, arguments: Arguments, tmp_path: Path
) -> None:
    """The launcher tells it, once."""
    narrow = ["MODEL.ROI_BOX_HEAD.FC_DIM", "16"]
    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    flags = ["--num-gpus", "2", "--eval-only"]
    process = start(arguments("clab_quick", tmp_path, flags, [*weights, *narrow, *ON_CPU]))
    output, _ = process.communicate()
    assert process.returncode == 2
    assert [line for line in output.splitlines() if "error: " in line] == [
        line for line in output.splitlines() if line.startswith("error: ")
    ]
    assert output.count("error: ") == 1
    assert "has shape" in output
    assert "Traceback" not in output


def test_missing_frame_in_a_data_worker(
    videos: TinyVideos, arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(videos.image_root, tmp_path / "frames")
    (tmp_path / "frames" / "v1" / "000003.jpg").write_bytes(b"no picture")
    entry = [["tiny", str(videos.json_file), str(tmp_path / "frames")]]
    options = [*("DATASETS.VID", str(entry)), *("DATALOADER.STRICT", "True")]
    options += ["DATALOADER.NUM_WORKERS", "1", "SOLVER.MAX_ITER", "100"]
    assert run_here(arguments("clab_quick", tmp_path / "out", (), options)) == 2
    output, errors = capfd.readouterr()
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    # The message alone, without what PyTorch puts before it.
    assert lines[0].startswith(f"error: {tmp_path}/frames/v1/000003.jpg: not a whole picture")
    assert "\\n" not in lines[0]
    assert "Traceback" not in output + errors


def test_traceback_on_request(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAB_D2_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"none\.pth"):
        run_here(arguments("clab_quick", tmp_path, (), ["MODEL.WEIGHTS", "none.pth"]))
