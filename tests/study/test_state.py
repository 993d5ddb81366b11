"""What of a run is there, by the files that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clab_d2.errors import ConfigError, DataError
from clab_d2.study.declared import Declared
from clab_d2.study.plan import Run
from clab_d2.study.state import State, examine, iterations_done

DECLARED = Declared({"SOLVER.MAX_ITER": 9, "NEW.KEY": 3}, ("a", "b"), 9, False)
ALSO_THERE = {"SEED": 1, "OUTPUT_DIR": "elsewhere", "NEW": {"KEY": 3}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("clab_d2.study.state.default_values", dict)
    return Run("a run", {}, 1, "c.yaml", (), tmp_path / "run")


def leave(run: Run, *names: str, **config: object) -> None:
    run.folder.mkdir(exist_ok=True)
    if config:
        (run.folder / "config.yaml").write_text(yaml.safe_dump(ALSO_THERE | config))
    for name in names:
        path = run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_from_nothing_to_finished(run: Run) -> None:
    assert examine(run, DECLARED) is State.TO_DO
    leave(run, "study_run.log")
    assert examine(run, DECLARED) is State.TO_DO
    leave(run, SOLVER={"MAX_ITER": 9})
    assert examine(run, DECLARED) is State.HALF_DONE
    leave(run, "inference/a/metrics.json")
    assert examine(run, DECLARED) is State.HALF_DONE, "one dataset is missing"
    leave(run, "inference/b/metrics.json")
    assert examine(run, DECLARED) is State.FINISHED


def test_another_config_is_no_finished_run(run: Run) -> None:
    leave(run, "inference/a/metrics.json", "inference/b/metrics.json", SOLVER={"MAX_ITER": 8})
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER is 8 there and 9 in the study"):
        examine(run, DECLARED)


def test_a_run_of_another_seed(run: Run) -> None:
    leave(run, SOLVER={"MAX_ITER": 9}, SEED=2)
    with pytest.raises(ConfigError, match="SEED is 2 there and 1 in the study"):
        examine(run, DECLARED)


def test_a_key_that_is_newer_than_the_run_has_its_default_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(run, SOLVER={"MAX_ITER": 9}, NEW={})
    with pytest.raises(ConfigError, match=r"NEW\.KEY is None there"):
        examine(run, DECLARED)
    monkeypatch.setattr("clab_d2.study.state.default_values", lambda: {"NEW.KEY": 3})
    assert examine(run, DECLARED) is State.HALF_DONE


@pytest.mark.parametrize("name", ["last_checkpoint", "inference/b/metrics.json"])
def test_results_of_unknown_origin(run: Run, name: str) -> None:
    leave(run, name)
    with pytest.raises(ConfigError, match=r"without its config\.yaml"):
        examine(run, DECLARED)


@pytest.mark.parametrize("content", ["a: [", "- 1", "!!python/object/apply:os.abort []"])
def test_an_unreadable_config(run: Run, content: str) -> None:
    leave(run)
    (run.folder / "config.yaml").write_text(content)
    with pytest.raises(DataError, match=r"config\.yaml: cannot be read") as error:
        examine(run, DECLARED)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "iterations"),
    [
        ("", 0),
        ('{"iteration": 41, "lr": 1}\n', 42),
        ('{"iteration": 41}\n{"iteration": 4', 42),
        ('{"iteration": 1}\n' + '{"time": 1}\n', 2),
        ('{"iteration": 3}\n' * 5000, 4),
        ("null\n", 0),
    ],
)
def test_iterations_done(run: Run, content: str, iterations: int) -> None:
    assert iterations_done(run) == 0
    leave(run)
    (run.folder / "metrics.json").write_text(content)
    assert iterations_done(run) == iterations
