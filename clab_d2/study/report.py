"""A study's table: means and paired differences with their intervals, as Markdown, JSON, CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from clab_d2.errors import ConfigError
from clab_d2.io import atomic_write, write_json
from clab_d2.study.plan import Condition, Study
from clab_d2.study.results import Result
from clab_d2.study.statistics import (
    Estimate,
    estimate,
    holm,
    paired_differences,
    pooled_std,
    smallest_detectable_difference,
)

#: Numbers of seeds for which the smallest detectable difference is told, and its power.
SEED_COUNTS = (3, 5, 10, 20)
POWER = 0.8


@dataclass(frozen=True)
class Row:
    """One condition's figures of one metric on one dataset.

    Attributes:
        condition: factor -> level.
        values: seed -> figure, in the metric's unit (percent).
        mean: over the seeds.
        baseline: the condition that it is compared with; None for none.
        differences: seed -> figure less the baseline's, where both have one.
        difference: over these seeds; None without a baseline.
    """

    condition: Condition
    values: dict[int, float]
    mean: Estimate
    baseline: Condition | None
    differences: dict[int, float]
    difference: Estimate | None


@dataclass(frozen=True)
class Figure:
    """A metric on a dataset, over all conditions that have results.

    Attributes:
        dataset, metric: which.
        split: the place of several figures that the metric is one of, as "vid/by-condition"; ""
            for one that the study names itself.
        rows: in the study's order.
        std: standard deviation of a difference by seed (:func:`make_report` says which).
        detectable: number of seeds -> smallest difference that so many likely show; NaN where
            there is no spread to tell by.
    """

    dataset: str
    metric: str
    split: str
    rows: list[Row]
    std: float
    detectable: dict[int, float]

    @property
    def name(self) -> str:
        """For the head of a column: of a split, only what it is split by."""
        return self.metric.removeprefix(f"{self.split}/") if self.split else self.metric


@dataclass(frozen=True)
class Report:
    """All figures of a study."""

    study: Study
    confidence: float
    figures: list[Figure]
    hours: float
    machines: list[str]

    # ---------------------------------------------------------------- files

    def write(self, folder: Path) -> list[Path]:
        """Write ``table.md``, ``table.json`` and ``table.csv``; return their paths."""
        files = [folder / f"table.{kind}" for kind in ("md", "json", "csv")]
        with atomic_write(files[0]) as file:
            file.write(self.markdown())
        write_json(files[1], self.as_json(), indent=2)
        with atomic_write(files[2]) as file:
            file.write(self.csv())
        return files

    @property
    def datasets(self) -> list[str]:
        """The names of what was evaluated."""
        return list(dict.fromkeys(figure.dataset for figure in self.figures))

    def tables(self) -> list[list[Figure]]:
        """The figures that are shown together: by dataset, and each split for itself."""
        tables: dict[tuple[str, str], list[Figure]] = {}
        for figure in self.figures:
            tables.setdefault((figure.dataset, figure.split), []).append(figure)
        return list(tables.values())

    def markdown(self) -> str:
        """The tables for people; of several datasets, and of each split, one of its own."""
        study = self.study
        parts = [f"# {study.title}"]
        if study.note:
            parts.append(study.note)
        datasets = self.datasets
        for figures in self.tables():
            heads = [figures[0].split]
            if len(datasets) > 1:
                heads.insert(0, figures[0].dataset)
            if any(heads):
                parts.append(f"## {', '.join(filter(None, heads))}")
            parts.append(self._means(figures))
            if study.baseline:
                parts.append(self._baseline_sentence())
                parts.append(self._differences(figures))
                parts += self._excluding_zero(figures)
            parts.append(self._detectable(figures))
        runs = sum(len(row.values) for row in self.figures[0].rows) if self.figures else 0
        on = f" on {', '.join(self.machines)}" if self.machines else ""
        parts.append(
            f"{runs} runs on {', '.join(datasets)}; {self.hours:.1f} hours of computing{on}."
        )
        return "\n\n".join(parts) + "\n"

    def _means(self, figures: Sequence[Figure]) -> str:
        table = self._table(
            figures, [row.condition for row in figures[0].rows], "seeds",
            lambda row: (str(row.mean.count), _mean_text(row.mean)),
        )  # fmt: skip
        return f"{table}\n\nMean ± standard error over the seeds."

    def _baseline_sentence(self) -> str:
        named = ", ".join(f"{factor} {level}" for factor, level in self.study.baseline.items())
        return (
            f"Differences from {named}, paired by seed, with their {_percent(self.confidence)} "
            "confidence interval (Student's t), each for itself:"
        )

    def _differences(self, figures: Sequence[Figure]) -> str:
        compared = [row.condition for row in figures[0].rows if row.baseline is not None]
        return self._table(
            figures, compared, "pairs",
            lambda row: (
                str(row.difference.count if row.difference else 0), _interval_text(row.difference)
            ),
        )  # fmt: skip

    def _excluding_zero(self, figures: Sequence[Figure]) -> list[str]:
        """How many intervals exclude 0, and which do so together; nothing without intervals."""
        named = [
            (f"{', '.join(row.condition.values())} ({figure.name})", row.difference)
            for figure in figures
            for row in figure.rows
            if row.difference is not None and row.difference.count > 1
        ]
        if not named:
            return []
        differences = [difference for _, difference in named]
        number = sum(difference.excludes_zero for difference in differences)
        by_chance = (1 - self.confidence) * len(named)
        holding = holm([difference.p_value for difference in differences], 1 - self.confidence)
        together = [name for (name, _), holds in zip(named, holding, strict=True) if holds]
        return [
            f"{number} of these {len(named)} intervals exclude 0; if nothing differed, chance "
            f"would make {by_chance:.1f}. With {_percent(self.confidence)} confidence in all of "
            f"them together (Holm's correction), these differ: {'; '.join(together) or 'none'}."
        ]

    def _table(
        self, figures: Sequence[Figure], conditions: Sequence[Condition], counted: str, cell: Any
    ) -> str:
        factors = [factor.name for factor in (*self.study.factors, *self.study.evaluate)]
        lines = []
        for condition in conditions:
            cells = [
                cell(next(row for row in figure.rows if row.condition == condition))
                for figure in figures
            ]
            names = [_escaped(condition[factor]) for factor in factors] or [self.study.name]
            lines.append([*names, cells[0][0], *(text for _, text in cells)])
        headers = [*(map(_escaped, factors) if factors else [""]), counted]
        return _pipe_table([*headers, *(figure.name for figure in figures)], lines, len(headers))

    def _detectable(self, figures: Sequence[Figure]) -> str:
        lines = [
            [str(count), *(_number(figure.detectable[count]) for figure in figures)]
            for count in SEED_COUNTS
        ]
        stds = ["standard deviation", *(_number(figure.std) for figure in figures)]
        table = _pipe_table(["seeds", *(figure.name for figure in figures)], [stds, *lines], 1)
        return (
            f"The difference that so many seeds show with a probability of {_percent(POWER)} "
            f"(their {_percent(self.confidence)} interval then excludes 0), by the standard "
            f"deviation of a difference between two runs of a seed:\n\n{table}"
        )

    def as_json(self) -> dict[str, Any]:
        """All figures; null for what is not known."""
        return {
            "study": self.study.name,
            "title": self.study.title,
            "confidence": self.confidence,
            "power": POWER,
            "hours": round(self.hours, 3),
            "machines": self.machines,
            "figures": [
                {
                    "dataset": figure.dataset,
                    "metric": figure.metric,
                    "std": _null(figure.std),
                    "detectable": {str(n): _null(d) for n, d in figure.detectable.items()},
                    "rows": [_row_json(row) for row in figure.rows],
                }
                for figure in self.figures
            ],
        }

    def csv(self) -> str:
        """A line for each condition, metric and dataset; empty for what is not known."""
        factors = [factor.name for factor in (*self.study.factors, *self.study.evaluate)]
        parts = ["mean", "standard_error", "low", "high", "count"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["dataset", "metric", *factors, *parts, *(f"difference_{part}" for part in parts)]
        )
        for figure in self.figures:
            for row in figure.rows:
                both = [row.mean, row.difference]
                numbers = [
                    _blank(getattr(one, part) if one else math.nan)
                    for one in both
                    for part in parts
                ]
                levels = [row.condition[factor] for factor in factors]
                writer.writerow([figure.dataset, figure.metric, *levels, *numbers])
        return text.getvalue()


def make_report(study: Study, results: Sequence[Result], confidence: float) -> Report:
    """Work out all figures of a study.

    The standard deviation by which the smallest detectable difference is told is that of the
    paired differences, pooled over the conditions. A study without any takes sqrt(2) times that of
    the figures themselves, pooled: two runs of a seed then count as independent, which is on the
    safe side.

    Args:
        study: with its metrics and baseline.
        results: of it; conditions without any are left out.
        confidence: of all intervals, from 0.5 to below 1.

    Raises:
        ConfigError: a metric of the study is in no result.
    """
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"--confidence is {confidence}; give a number from 0.5 to 1, as 0.95")
    figures = []
    for dataset in dict.fromkeys(result.dataset for result in results):
        of_dataset = [result for result in results if result.dataset == dataset]
        figures += [
            _figure(study, of_dataset, metric, split, confidence)
            for place in study.metrics
            for metric, split in _metrics_at(study, place, of_dataset)
        ]
    # A run on two datasets was computed once.
    by_run = {result.key[:2]: result.run for result in results}.values()
    seconds = [run.get("seconds", 0) for run in by_run]
    hours = sum(number for number in seconds if isinstance(number, int | float)) / 3600
    machines = dict.fromkeys(str(run["machine"]) for run in by_run if run.get("machine"))
    return Report(study, confidence, figures, hours, list(machines))


def _metrics_at(study: Study, place: str, results: Sequence[Result]) -> list[tuple[str, str]]:
    """A metric and no split; or, of a place that holds several, each and the place.

    What is null in every result, as classes without objects are, is left out.
    """
    names = dict.fromkeys(name for result in results for name in result.names_under(place))
    metrics = [f"{place}/{name}" for name in names]
    known = [
        metric
        for metric in metrics
        if not all(math.isnan(_value(study, result, metric)) for result in results)
    ]
    return [(metric, place) for metric in known] or [(place, "")]


def _figure(
    study: Study, results: Sequence[Result], metric: str, split: str, confidence: float
) -> Figure:
    values: list[tuple[Condition, dict[int, float]]] = []
    for condition in study.conditions():
        of_condition = [result for result in results if result.condition == condition]
        if of_condition:
            by_seed = {result.seed: _value(study, result, metric) for result in of_condition}
            values.append((condition, by_seed))
    rows = []
    for condition, by_seed in values:
        baseline = study.baseline_of(condition)
        differences: dict[int, float] = {}
        if baseline is not None:
            others = next((other for found, other in values if found == baseline), {})
            differences = paired_differences(by_seed, others)
        rows.append(
            Row(
                condition=condition,
                values=by_seed,
                mean=estimate(by_seed.values(), confidence),
                baseline=baseline,
                differences=differences,
                difference=None if baseline is None else estimate(differences.values(), confidence),
            )
        )
    std, freedom = pooled_std([list(row.differences.values()) for row in rows])
    if not freedom:
        std = math.sqrt(2) * pooled_std([list(row.values.values()) for row in rows])[0]
    detectable = {
        count: smallest_detectable_difference(std, count, confidence, POWER)
        for count in SEED_COUNTS
    }
    return Figure(results[0].dataset, metric, split, rows, std, detectable)


def _value(study: Study, result: Result, metric: str) -> float:
    try:
        return result.value(metric)
    except KeyError:
        there = ", ".join(
            f"{group}/{name}"
            for group, figures in result.metrics.items()
            if isinstance(figures, dict)
            for name, value in figures.items()
            if not isinstance(value, dict)
        )
        raise ConfigError(
            f"{study.source}: metrics has {metric!r}, which is no figure on {result.dataset}; "
            f"there are {there}, and those by class at vid/per-class"
        ) from None


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "condition": row.condition,
        "values": {str(seed): _null(value) for seed, value in row.values.items()},
        **_estimate_json(row.mean),
        "baseline": row.baseline,
        "differences": {str(seed): value for seed, value in row.differences.items()},
        "difference": None if row.difference is None else _estimate_json(row.difference),
    }


def _estimate_json(one: Estimate) -> dict[str, float | int | None]:
    return {name: _null(value) for name, value in asdict(one).items()}


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _blank(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _percent(part: float) -> str:
    return f"{100 * part:g}%"


def _mean_text(mean: Estimate) -> str:
    text = _number(mean.mean)
    return text if math.isnan(mean.standard_error) else f"{text} ± {mean.standard_error:.2f}"


def _interval_text(difference: Estimate | None) -> str:
    if difference is None or math.isnan(difference.mean):
        return "-"
    text = f"{difference.mean:+.2f}"
    if math.isnan(difference.low):
        return text
    return f"{text} [{difference.low:+.2f}, {difference.high:+.2f}]"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _pipe_table(headers: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Markdown; the first ``left`` columns are names, the others figures."""
    alignment = ["left"] * left + ["right"] * (len(headers) - left)
    return tabulate(
        lines,
        headers=headers,
        tablefmt="pipe",
        disable_numparse=True,
        # tabulate before 0.10 knows no columns where there are no lines.
        colalign=alignment if lines else (),
    )
