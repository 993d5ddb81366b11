"""What of a run is there: nothing, some of its training, or all that it was to bring."""

from __future__ import annotations

import enum
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from clab_d2.config import get_clab_cfg
from clab_d2.engine import load_config
from clab_d2.engine.schedule import scale_schedule
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import read_json
from clab_d2.study.plan import Run, Study

# Keys that change no figure: where a run is, on what, and how often it says so.
_IRRELEVANT = {
    "OUTPUT_DIR", "MODEL.DEVICE", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "VIS_PERIOD",
    "LOG.SERVICES", "LOG.PROJECT", "LOG.PICTURES",
}  # fmt: skip
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class State(enum.Enum):
    """How far a run is."""

    TO_DO = "to do"
    HALF_DONE = "half-done"
    FINISHED = "finished"


@dataclass(frozen=True)
class Declared:
    """The config that a run is declared to have.

    Attributes:
        values: whole key -> value, as YAML reads them.
        datasets: those that are evaluated.
        max_iter: iterations of its training.
        evaluates_midway: whether metrics are written before the training's end, too.
    """

    values: Mapping[str, Any]
    datasets: tuple[str, ...]
    max_iter: int
    evaluates_midway: bool


class DeclaredConfigs:
    """The configs of a study's runs, each combination of file and options read once."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._read: dict[tuple[str, tuple[str, ...]], Declared] = {}

    def of(self, run: Run) -> Declared:
        """A run's config, read and validated.

        Raises:
            ConfigError, DataError: one line that names the study and the run.
        """
        # A seed makes no other config, and the weights to evaluate may not be there yet.
        options = run.options[:-2] if run.training else run.options
        key = run.config, options
        if key not in self._read:
            try:
                cfg = load_config(run.config, list(options))
                if cfg.MODEL.TRUST_WEIGHTS:
                    raise ConfigError(
                        "MODEL.TRUST_WEIGHTS would let files of weights run code; leave it False "
                        "in a study, and convert such files by tools/convert_checkpoint.py"
                    )
                self._read[key] = _declared(cfg, self._study.num_gpus)
            except (ConfigError, DataError) as error:
                raise type(error)(f"{self._study.source}: {run.label}: {error}") from None
        return self._read[key]


def _declared(cfg: CfgNode, num_gpus: int) -> Declared:
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty, so there would be no metrics; name a dataset")
    return Declared(
        values=_leaves(_yaml(cfg.dump())),
        datasets=tuple(cfg.DATASETS.TEST),
        max_iter=scale_schedule(cfg, num_gpus).SOLVER.MAX_ITER,
        evaluates_midway=cfg.TEST.EVAL_PERIOD > 0,
    )


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
        own = _leaves(_yaml(written.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{written}: cannot be read ({' '.join(str(error).split())})") from None
    wanted = {**declared.values, "SEED": run.seed}
    ignored = _IRRELEVANT | ({"MODEL.WEIGHTS"} if run.training else set())
    # A key that came with a later version has its default in earlier runs.
    own = {**_defaults(), **own}
    for key in sorted((wanted.keys() | own.keys()) - ignored):
        if wanted.get(key) != own.get(key):
            return f"{key} is {own.get(key)!r} there and {wanted.get(key)!r} in the study"
    return ""


@functools.cache
def _defaults() -> dict[str, Any]:
    return _leaves(_yaml(get_clab_cfg().dump()))


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # a SafeLoader


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ValueError("holds no KEY: VALUE pairs")
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


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
