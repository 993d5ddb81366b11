"""What of a run is there: nothing, some of its training, or all that it was to bring."""

from __future__ import annotations

import enum
import json
import os
from pathlib import Path
from typing import Any

import yaml

from clab_d2.errors import ConfigError, DataError
from clab_d2.io import read_json
from clab_d2.study.declared import IRRELEVANT, Declared, config_values, default_values
from clab_d2.study.plan import Run


class State(enum.Enum):
    """How far a run is."""

    TO_DO = "to do"
    HALF_DONE = "half-done"
    FINISHED = "finished"


def metrics_files(run: Run, declared: Declared) -> dict[str, Path]:
    """Dataset -> where a run writes its metrics."""
    return {name: run.folder / "inference" / name / "metrics.json" for name in declared.datasets}


def examine(run: Run, declared: Declared) -> State:
    """Look at what is there of a run.

    It is finished if it has the metrics of every dataset and its config is the declared one.

    Raises:
        ConfigError: its folder holds a run of another config, which must not be gone on with, nor
            be thrown away unasked.
    """
    folder = run.folder
    files = metrics_files(run, declared).values()
    written = folder / "config.yaml"
    if not written.is_file():
        if (folder / "last_checkpoint").exists() or any(file.exists() for file in files):
            raise ConfigError(
                f"{folder}: holds a run without its config.yaml, so what it was is unknown; move "
                "it away, or name another --output"
            )
        return State.TO_DO
    difference = _difference(run, declared, written)
    if difference:
        raise ConfigError(
            f"{folder}: holds a run of another config: {difference}; move it away, or name "
            "another --output"
        )
    if all(file.is_file() for file in files) and _is_last_evaluation(run, declared):
        return State.FINISHED
    return State.HALF_DONE


def _is_last_evaluation(run: Run, declared: Declared) -> bool:
    if run.training or not declared.evaluates_midway:
        return True
    noted = run.folder / "last_evaluation"
    return noted.is_file() and noted.read_text().strip() == str(declared.max_iter - 1)


def _difference(run: Run, declared: Declared, written: Path) -> str:
    """The first key in which a run's own config differs from the declared one; "" for none."""
    try:
        own = config_values(written.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{written}: cannot be read ({' '.join(str(error).split())})") from None
    wanted = {**declared.values, "SEED": run.seed}
    ignored = IRRELEVANT | ({"MODEL.WEIGHTS"} if run.training else set())
    # A key that came with a later version has its default in earlier runs.
    own = {**default_values(), **own}
    for key in sorted((wanted.keys() | own.keys()) - ignored):
        if wanted.get(key) != own.get(key):
            return f"{key} is {own.get(key)!r} there and {wanted.get(key)!r} in the study"
    return ""


def iterations_done(run: Run) -> int:
    """Iterations of a training that its log tells of; 0 where there is none."""
    try:
        with open(run.folder / "metrics.json", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["iteration"]) + 1
        except (ValueError, TypeError, KeyError):
            continue  # cut off at either end
    return 0


# ---------------------------------------------------------------- what the runner notes down


def read_record(run: Run) -> dict[str, Any]:
    """What is noted of a run's computing (:func:`clab_d2.study.runner`); {} for nothing."""
    path = run.folder / "study_run.json"
    record = read_json(path) if path.is_file() else {}
    return record if isinstance(record, dict) else {}
