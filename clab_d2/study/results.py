"""Metrics of finished runs, kept in one small file: what tables and plots are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clab_d2.errors import DataError
from clab_d2.io import atomic_write, read_json
from clab_d2.study.declared import DeclaredConfigs
from clab_d2.study.plan import Condition, Run, Study
from clab_d2.study.state import metrics_files, read_record

FILE_NAME = "study_results.json"
FORMAT = "clab_d2 study results"
VERSION = 1


@dataclass(frozen=True)
class Result:
    """The metrics of one run on one dataset.

    Attributes:
        condition: factor -> level.
        seed: of the run.
        dataset: what was evaluated.
        metrics: the content of the run's metrics.json (docs/evaluation.md).
        run: how it came about: "config", "options", and of its computing "seconds", "threads",
            "machine", for people; and the "digest" of its config, by which other studies know it.
    """

    condition: Condition
    seed: int
    dataset: str
    metrics: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[tuple[tuple[str, str], ...], int, str]:
        """What there can be but one result of."""
        return tuple(sorted(self.condition.items())), self.seed, self.dataset

    def value(self, metric: str) -> float:
        """A figure by its place in metrics.json, as "vid/AP50"; NaN for null.

        Raises:
            KeyError: there is no such place.
        """
        found = self._at(metric)
        if found is None:
            return math.nan
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise KeyError(metric)
        return float(found)

    def names_under(self, place: str) -> list[str]:
        """The names at a place that holds several figures, as "vid/by-condition"; [] elsewhere."""
        try:
            found = self._at(place)
        except KeyError:
            return []
        if not isinstance(found, dict):
            return []
        return [name for name, value in found.items() if not isinstance(value, dict)]

    def _at(self, place: str) -> Any:
        found: Any = self.metrics
        for name in place.split("/"):
            if not isinstance(found, dict) or name not in found:
                raise KeyError(place)
            found = found[name]
        return found


def collect_results(finished: Iterable[Run], configs: DeclaredConfigs) -> list[Result]:
    """The results of finished runs, less those that are not reported.

    Args:
        finished: each training before its evaluations.
        configs: of these runs.

    Raises:
        DataError: a metrics.json can't be read.
    """
    results = []
    unreported: dict[Path, float] = {}  # seconds of trainings, which count for an evaluation
    for run in finished:
        record = read_record(run)
        if run.condition is None:
            unreported[run.folder] = record.get("seconds", 0)
            continue
        if run.training:
            extra = unreported.pop(run.training.folder, 0)
            record["seconds"] = record.get("seconds", 0) + extra
        options = " ".join(run.options)
        record = {"config": run.config, "options": options, **record, "digest": configs.digest(run)}
        for dataset, file in metrics_files(run, configs.of(run)).items():
            results.append(Result(run.condition, run.seed, dataset, read_json(file), record))
    return results


def write_results(path: Path, study: Study, results: Sequence[Result]) -> None:
    """Write a ``study_results.json``, one line a result, so that versions of it compare well."""
    head = {"format": FORMAT, "version": VERSION, "study": study.name}
    lines = ",\n".join(json.dumps(asdict(result)) for result in results)
    with atomic_write(path) as file:
        file.write(json.dumps(head)[:-1] + f', "results": [\n{lines}\n]}}\n')


def read_results(path: Path) -> tuple[str, list[Result]]:
    """Read a ``study_results.json``.

    Returns:
        The study's name, and the results.

    Raises:
        DataError: it is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: holds no results of a study; give a {FILE_NAME}")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path}: has version {content.get('version')!r} of the format, and this is {VERSION}; "
            "take the version of clab_d2 that wrote it"
        )
    entries = content.get("results")
    if not isinstance(entries, list) or not isinstance(content.get("study"), str):
        raise DataError(f"{path}: lacks study or results; is it whole?")
    return content["study"], [_result(path, number, entry) for number, entry in enumerate(entries)]


def _result(path: Path, number: int, entry: Any) -> Result:
    try:
        result = Result(**entry)
        right = (
            all(isinstance(text, str) for pair in result.condition.items() for text in pair)
            and isinstance(result.seed, int)
            and isinstance(result.dataset, str)
            and isinstance(result.metrics, dict)
            and isinstance(result.run, dict)
        )
    except (TypeError, AttributeError):
        right = False
    if not right:
        raise DataError(f"{path}: results[{number}] is not one as tools/study.py writes them")
    return result


def find_result_files(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and every ``*.json`` of the format in the folders and below them.

    Raises:
        DataError: a path is not there.
    """
    files = []
    for path in paths:
        if path.is_dir():
            files += [file for file in sorted(path.rglob("*.json")) if _has_format(file)]
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder; check the path")
    return files


def _has_format(path: Path) -> bool:
    start = f'{{"format": "{FORMAT}"'.encode()
    with path.open("rb") as file:
        return file.read(len(start)) == start


def merge_results(
    paths: Iterable[Path], study: Study, equal: Iterable[Result] = ()
) -> tuple[list[Result], int]:
    """What several files hold of a study: of other machines, seeds or sessions.

    Args:
        paths: files, and folders to look through.
        study: whose results are wanted; files of other studies are passed over.
        equal: results of other studies' equal runs, for those that no file has of this one.

    Returns:
        The results of declared conditions and seeds, in the declared order, and the number of
        those that the study does not declare.

    Raises:
        DataError: two files have different metrics of one run.
    """
    merged: dict[Any, tuple[Result, Path]] = {}
    for file in find_result_files(paths):
        name, results = read_results(file)
        for result in results if name == study.name else []:
            other, where = merged.setdefault(result.key, (result, file))
            if other.metrics != result.metrics:
                label = ", ".join([*result.condition.values(), f"seed {result.seed}"])
                raise DataError(
                    f"{file}: its metrics of {label} on {result.dataset} differ from those in "
                    f"{where}; keep one of the two"
                )
    found = {result.key: result for result in equal} | {
        key: result for key, (result, _) in merged.items()
    }
    order = [tuple(sorted(condition.items())) for condition in study.conditions()]
    known = [
        result
        for result in found.values()
        if result.key[0] in order and result.seed in study.seeds
    ]
    known.sort(key=lambda result: (order.index(result.key[0]), result.seed))
    return known, len(found) - len(known)
