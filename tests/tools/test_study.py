"""tools/study.py with a stub for the training, and once with the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from study_stub import StubbedStudy, metrics_of

ROOT = Path(__file__).resolve().parents[2]


def start(study: StubbedStudy, *more: str) -> subprocess.Popen[str]:
    """The tool in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "study.py"), *study.arguments(*more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not reached():
        if process.poll() is not None:
            pytest.fail(f"ended early:\n{process.communicate()[0]}")
        time.sleep(0.02)


def test_a_grid_is_run_and_its_tables_say_what_it_shows(
    study: StubbedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.run() == 0
    assert study.starts() == {
        f"{rate}/seed_{seed}": [0] for rate in ("low", "high") for seed in (1, 2)
    }
    low, high = metrics_of(study.table(), "vid/AP50")
    # the stub: 50 + seed^2 + 100 * rate - 4 references
    assert low["values"] == pytest.approx({"1": 48, "2": 51})
    assert high["differences"] == pytest.approx({"1": 2, "2": 2})
    assert (study.output / "differences.png").is_file()
    kept = json.loads((study.output / "study_results.json").read_text())
    assert len(kept["results"]) == 4
    assert kept["results"][0]["run"].keys() == {
        "config", "options", "seconds", "threads", "machine", "digest",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "[0/4] low, seed 1: started" in printed
    assert "high, seed 2: finished in" in printed
    assert "| high   | 2       |" in printed

    assert study.run() == 0
    assert len(study.events("start")) == 4, "what is finished is not repeated"


def test_a_study_that_is_killed_goes_on(
    study: StubbedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with its run, in the middle of the second training."""
    monkeypatch.setenv("STUB_SECONDS", "0.3")
    process = start(study)
    second = study.output / "runs" / "high" / "seed_1"
    wait_until(lambda: (second / "model_0000001.pth").exists(), process)
    pids = [event["pid"] for event in study.events("start")]
    process.kill()
    os.kill(pids[-1], signal.SIGKILL)
    process.communicate()
    monkeypatch.setenv("STUB_SECONDS", "0")
    assert study.run() == 0
    starts = study.starts()
    assert starts.pop("high/seed_1") == [0, pytest.approx(2, abs=1)]
    assert starts == {"low/seed_1": [0], "low/seed_2": [0], "high/seed_2": [0]}
    assert len(study.events("end")) == 4
    means = [row["mean"] for row in metrics_of(study.table(), "vid/AP50")]
    assert means == pytest.approx([49.5, 51.5])


def test_a_run_that_outlives_its_study_is_waited_for(
    study: StubbedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the study is killed: the next one must not start the run a second time beside it."""
    monkeypatch.setenv("STUB_SECONDS", "0.5")
    study.declare(seeds=[1], factors=None, baseline=None)
    process = start(study)
    wait_until(lambda: bool(study.events("start")), process)
    process.kill()
    process.wait()
    assert study.run() == 0
    assert study.starts() == {"seed_1": [0]}
    printed = capsys.readouterr().out
    assert "seed 1: goes on in a process of an earlier or another study" in printed
    assert "seed 1: finished by another process" in printed


def test_a_signal_is_passed_on(study: StubbedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SECONDS", "5")
    process = start(study, "--jobs", "2")
    wait_until(lambda: len(study.events("start")) == 2, process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert len(study.events("stop")) == 2
    assert "Traceback" not in printed
    assert "low, seed 1: stopped" in printed and "the same command goes on" in printed


def test_runs_side_by_side_share_the_threads(
    study: StubbedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SECONDS", "0.3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)))
    assert study.run("--jobs", "2") == 0
    begins = sorted(event["time"] for event in study.events("start"))
    ends = sorted(event["time"] for event in study.events("end"))
    assert begins[1] < ends[0], "the first two at once"
    assert begins[2] > ends[0], "never three"
    assert {event["threads"] for event in study.events()} == {"2"}


def test_a_run_for_each_gpu(study: StubbedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SECONDS", "0.1")
    assert study.run("--gpus", "3,5", "--threads", "1") == 0
    assert {event["gpus"] for event in study.events("start")} == {"3", "5"}


def test_a_failing_run_is_told_and_the_others_go_on(
    study: StubbedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study.declare(
        evaluate={"number": {"own": None, "two": {"TEST.REFERENCES.NUM": 2}}},
        baseline={"number": "own"},
    )
    monkeypatch.setenv("STUB_FAILS", "1")
    assert study.run() == 1
    printed = capsys.readouterr()
    log = study.output / "runs" / "low" / "seed_1" / "study_run.log"
    failed = [line for line in printed.err.splitlines() if line.startswith("failed: ")]
    assert failed[0] == f"failed: low, seed 1: out of luck; its log is {log}"
    assert "a line of the log" in log.read_text()
    assert len(failed) == 2
    assert "skipped: low, two, seed 1: its training failed" in printed.err
    rows = metrics_of(study.table(), "vid/AP50")
    assert [row["count"] for row in rows] == [1, 1, 1, 1]
    # the next time it is tried again, and what is said is of that time
    monkeypatch.setenv("STUB_FAILS", "killed")
    assert study.run("--seeds", "1") == 1
    assert f"failed: low, seed 1: killed by SIGKILL; its log is {log}" in capsys.readouterr().err
    monkeypatch.setenv("STUB_FAILS", "1 silently")
    assert study.run("--seeds", "1") == 1
    assert "failed: low, seed 1: a line of the log; its log" in capsys.readouterr().err
    monkeypatch.delenv("STUB_FAILS")
    assert study.run() == 0
    assert study.starts()["low/seed_1"] == [0, 4, 4, 4]
    assert study.starts()["low/seed_2"] == [0]


def test_evaluations_train_nothing(study: StubbedStudy) -> None:
    study.declare(
        factors=None,
        evaluate={"number": {n: {"TEST.REFERENCES.NUM": n} for n in (2, 6)} | {"own": None}},
        baseline={"number": "own"},
    )
    assert study.run("--jobs", "2") == 0
    assert study.starts() == {"seed_1": [0], "seed_2": [0]}
    rows = {row["condition"]["number"]: row for row in metrics_of(study.table(), "vid/AP50")}
    assert rows["2"]["differences"] == pytest.approx({"1": 2, "2": 2})
    assert rows["6"]["differences"] == pytest.approx({"1": -2, "2": -2})


def test_a_dry_run_lists_and_runs_nothing(
    study: StubbedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study.declare(hours={"training": 0.5})
    assert study.run("--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.count("to do ") == 4
    assert "SOLVER.BASE_LR 0.03 SEED 2 OUTPUT_DIR" in printed
    assert "4 of 4 runs are left, which take about 2.0 hours" in printed
    assert not study.output.exists() and not study.events()
    assert study.run("--seeds", "1") == 0
    capsys.readouterr()
    assert study.run("--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.count("finished ") == 2 and "2 of 4 runs are left" in printed


def test_a_folder_with_runs_of_another_config_is_refused(
    study: StubbedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.run() == 0
    events = len(study.events())
    study.declare(options={"SOLVER.MAX_ITER": 7})
    capsys.readouterr()
    assert study.run() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {study.output}/runs/low/seed_1: holds a run of another config")
    assert "SOLVER.MAX_ITER is 4 there and 7 in the study" in error
    assert len(study.events()) == events
    # how often a run says where it is makes it no other one
    study.declare(options={"SOLVER.LOG_PERIOD": 2, "SOLVER.CHECKPOINT_PERIOD": 1})
    assert study.run() == 0
    assert len(study.events()) == events


def test_metrics_from_the_middle_of_a_training_do_not_finish_it(study: StubbedStudy) -> None:
    study.declare(options={"TEST.EVAL_PERIOD": 2}, factors=None, baseline=None, seeds=[1])
    assert study.run() == 1, "the stub does not note its last evaluation"
    folder = study.output / "runs" / "seed_1"
    (folder / "last_evaluation").write_text("1")
    assert study.run("--dry-run") == 0
    assert study.run() == 1
    (folder / "last_evaluation").write_text("3")
    starts = len(study.events("start"))
    assert study.run() == 0
    assert len(study.events("start")) == starts


def test_only_the_final_checkpoint_may_be_kept(study: StubbedStudy) -> None:
    study.declare(seeds=[1])
    assert study.run() == 0
    folder = study.output / "runs" / "low" / "seed_1"
    assert len(list(folder.glob("*.pth"))) == 5
    assert study.run("--final-checkpoint-only") == 0
    assert [file.name for file in folder.glob("*.pth")] == ["model_final.pth"]


@pytest.mark.parametrize(
    ("keys", "flags", "said"),
    [
        (
            {"options": {"SOLVER.MAX_ITERS": 3}},
            [],
            ["rates.yaml: low, seed 1:", "SOLVER.MAX_ITERS"],
        ),
        ({"config": "none.yaml"}, [], ["none.yaml: there is no such config file"]),
        ({"options": {"DATASETS.TEST": "()"}}, [], ["DATASETS.TEST is empty"]),
        ({"options": {"MODEL.TRUST_WEIGHTS": True}}, [], ["MODEL.TRUST_WEIGHTS"]),
        ({"factor": {}}, [], ["factor is no key of a study"]),
        ({}, ["--seeds", "3"], ["--seeds", "no seed 3"]),
        ({}, ["--jobs", "0"], ["--jobs is 0"]),
        ({}, ["--threads", "0"], ["--threads is 0"]),
        ({}, ["--import", "none.py"], ["none.py"]),
        ({}, ["--train-script", "none.py"], ["--train-script none.py: no such file"]),
        ({}, ["--tables-only", "none.json"], ["none.json: no such file or folder"]),
        ({"num_gpus": 2}, ["--gpus", "0,1,2"], ["--gpus names 3", "takes 2 (num_gpus)"]),
        ({"num_gpus": 2}, ["--gpus", "0,0"], ["one of them twice"]),
    ],
)
def test_mistakes_are_told_in_one_line(
    study: StubbedStudy,
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, object],
    flags: list[str],
    said: list[str],
) -> None:
    study.declare(**keys)
    assert study.run(*flags) == 2
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors
    assert all(part in lines[0] for part in said), lines[0]
    assert not study.events()


def test_with_the_real_training(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, evaluated in two ways, and found finished by the files that it leaves."""
    file = tmp_path / "real.yaml"
    content = {
        "config": str(tiny_config),
        "options": {"SOLVER.MAX_ITER": 2},
        "evaluate": {"number": {"own": None, "two": {"TEST.REFERENCES.NUM": 2}}},
        "seeds": [1],
        "metrics": ["vid/AP50", "vid/AP50-fast"],
    }
    file.write_text(yaml.safe_dump(content))
    study = StubbedStudy(file, tmp_path / "out", tmp_path / "none", train_script=None)
    assert study.run() == 0, capsys.readouterr()
    assert [row["count"] for row in metrics_of(study.table(), "vid/AP50")] == [1, 1]
    capsys.readouterr()
    assert study.run("--dry-run") == 0
    assert "0 of 2 runs are left, which take about 0.0 hours" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_of_the_repository_can_be_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    study = StubbedStudy(path, tmp_path / "out", tmp_path / "none", train_script=None)
    assert study.run("--dry-run") == 0, capsys.readouterr()
    lines = capsys.readouterr().out.splitlines()
    runs = [line for line in lines if line.startswith("to do ")]
    assert len(runs) >= 6
    assert any(line.startswith(f"{len(runs)} of {len(runs)} runs are left") for line in lines)
