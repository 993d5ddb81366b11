"""tools/study.py with several studies, and with results kept of earlier ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from study_stub import StubbedStudy, metrics_of
from tool_modules import import_tool


@pytest.fixture
def more(study: StubbedStudy) -> StubbedStudy:
    """A study that has the rate 0.01 in common with ``study``, by another name; a seed each."""
    study.declare(seeds=[1])
    other = dataclasses.replace(
        study, file=study.file.with_name("more.yaml"), output=study.output.with_name("more_out")
    )
    shutil.copy(study.file, other.file)
    # How often it saves a checkpoint makes it no other config.
    other.declare(
        factors={
            "speed": {"as there": {"SOLVER.BASE_LR": 0.010}, "fast": {"SOLVER.BASE_LR": 0.05}}
        },
        options={"SOLVER.CHECKPOINT_PERIOD": 3},
        baseline={"speed": "as there"},
    )
    return other


def run_both(first: StubbedStudy, second: StubbedStudy, *flags: str) -> int:
    arguments = first.arguments(*flags)
    arguments.insert(arguments.index(str(first.file)) + 1, str(second.file))
    return import_tool("study").main(arguments)


def table(folder: Path) -> list[float]:
    rows = metrics_of(json.loads((folder / "table.json").read_text()), "vid/AP50")
    return [row["mean"] for row in rows]


def test_equal_runs_are_made_once(
    study: StubbedStudy, more: StubbedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    study.declare(hours={"training": 1})
    more.declare(hours={"training": 2}, seeds=[2, 1])
    assert run_both(study, more, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "2 studies of 6 runs; equal ones are made once" in printed
    # by the hours of the study that is first to declare them: low, high; as there, fast, fast
    assert "5 of 5 runs are left, which take about 8.0 hours" in printed
    assert run_both(study, more) == 0
    assert len(study.events("start at")) == 5
    assert table(study.output / "rates") == pytest.approx([48, 50])
    assert table(study.output / "more") == pytest.approx([49.5, 53.5])
    # in whatever order
    assert run_both(dataclasses.replace(more, output=study.output), study) == 0
    assert len(study.events("start at")) == 5


def test_seeds_go_round_over_all_studies(study: StubbedStudy, more: StubbedStudy) -> None:
    for one in (study, more):
        one.declare(seeds=[1, 2])
    assert run_both(study, more) == 0
    folders = [event["folder"] for event in study.events("start at")]
    assert [folder[-1] for folder in folders] == ["1"] * 3 + ["2"] * 3


def test_evaluations_are_shared_with_their_trainings(
    study: StubbedStudy, more: StubbedStudy
) -> None:
    levels = {"number": {"own": None, "two": {"TEST.REFERENCES.NUM": 2}}}
    for one in (study, more):
        one.declare(evaluate=levels, baseline={"number": "own"})
    assert run_both(study, more) == 0
    assert len(study.events("start at")) == 3
    assert len(study.events("end")) == 6
    own, two, fast_own, fast_two = table(study.output / "more")
    assert (fast_own - own, fast_two - two) == (pytest.approx(4), pytest.approx(4))


def test_what_is_kept_is_not_run_again(
    study: StubbedStudy, more: StubbedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.run() == 0
    shutil.rmtree(study.output / "runs")
    capsys.readouterr()
    assert more.run("--kept", str(study.output)) == 0
    assert "1 of 2 runs are kept, and not made again" in capsys.readouterr().out
    assert len(study.events("start at")) == 3
    assert table(more.output) == pytest.approx([48, 52])
    kept = json.loads((more.output / "study_results.json").read_text())["results"]
    assert {result["condition"]["speed"] for result in kept} == {"as there", "fast"}
    # nothing is left: not even a folder of runs
    anew = dataclasses.replace(more, output=more.output.with_name("anew"))
    assert anew.run("--kept", str(more.output)) == 0
    assert table(anew.output) == pytest.approx([48, 52])
    assert not (anew.output / "runs").exists()


def test_results_without_a_digest_are_not_taken(
    study: StubbedStudy, more: StubbedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.run() == 0
    file = study.output / "study_results.json"
    content = json.loads(file.read_text())
    for result in content["results"]:
        del result["run"]["digest"]
    file.write_text(json.dumps(content))
    assert more.run("--dry-run", "--kept", str(file)) == 0
    printed = capsys.readouterr().out
    assert "2 kept result(s) have no digest" in printed
    assert "2 of 2 runs are left" in printed


def test_an_evaluation_wants_its_weights(study: StubbedStudy) -> None:
    """A training of which only metrics are kept is made again for an evaluation that is new."""
    study.declare(seeds=[1], factors=None, baseline=None)
    assert study.run() == 0
    study.declare(evaluate={"number": {"own": None, "two": {"TEST.REFERENCES.NUM": 2}}})
    anew = dataclasses.replace(study, output=study.output.with_name("anew"))
    assert anew.run("--kept", str(study.output)) == 0
    assert len(study.events("start at")) == 2
    assert len(metrics_of(anew.table(), "vid/AP50")) == 2
    # and not if the evaluation is kept, too
    last = dataclasses.replace(study, output=study.output.with_name("last"))
    assert last.run("--kept", str(anew.output)) == 0
    assert len(study.events("start at")) == 2


def test_tables_share_equal_runs(
    study: StubbedStudy, more: StubbedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.run() == 0
    tables = dataclasses.replace(study, output=study.output.with_name("tables"))
    assert run_both(tables, more, "--tables-only", str(study.output)) == 0
    assert table(tables.output / "rates") == pytest.approx([48, 50])
    assert table(tables.output / "more") == pytest.approx([48]), "the run that both have"
    # by default from the folders themselves, and a study without any is told
    more.declare(options={"SOLVER.MAX_ITER": 7})
    shutil.rmtree(tables.output / "more")
    capsys.readouterr()
    assert run_both(tables, more, "--tables-only") == 0
    assert "more.yaml: no results of more, nor of equal runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keys", "flags", "said"),
    [
        ({"num_gpus": 2}, [], ["more.yaml: each of its runs takes 2 GPUs", "run the two apart"]),
        ({"name": "rates"}, [], ["more.yaml: its name 'rates' makes no folder of its own"]),
        ({"name": "../runs"}, [], ["its name '../runs'", "the runs of all"]),
        ({}, ["--kept", "none.json"], ["none.json: no such file or folder"]),
        ({}, ["--seeds", "3"], ["has no seed 3"]),
    ],
)
def test_mistakes_of_several_are_told_in_one_line(
    study: StubbedStudy,
    more: StubbedStudy,
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, object],
    flags: list[str],
    said: list[str],
) -> None:
    more.declare(**keys)
    assert run_both(study, more, *flags) == 2
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors
    assert all(part in lines[0] for part in said), lines[0]
    assert not study.events()
