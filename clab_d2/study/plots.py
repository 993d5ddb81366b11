"""Pictures of a study: its seeds as dots, means with their intervals, and differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clab_d2.evaluation.plots import COLOURS, new_figure
from clab_d2.io import atomic_write
from clab_d2.study.plan import folder_name
from clab_d2.study.report import Figure as Measured
from clab_d2.study.report import Report, Row
from clab_d2.study.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Side by side in one picture.
MOST_PANELS = 5

Shown = Callable[[Row], tuple[Mapping[int, float], Estimate | None]]


def draw_report(report: Report, folder: Path) -> list[Path]:
    """Write ``values.png`` and, where there are any, ``differences.png``; of several datasets a
    pair each, beginning with its name, and of a split a pair that ends with its own.

    Returns:
        The files.
    """
    files = []
    for measured in report.tables():
        prefix = f"{measured[0].dataset}_" if len(report.datasets) > 1 else ""
        split = folder_name([measured[0].split.replace("/", "_")])
        suffix = f"_{split}" if split else ""
        figures = {f"{prefix}values{suffix}": values_figure(report, measured)}
        if any(row.differences for figure in measured for row in figure.rows):
            figures[f"{prefix}differences{suffix}"] = differences_figure(report, measured)
        for name, figure in figures.items():
            files.append(folder / f"{name}.png")
            with atomic_write(files[-1], "wb") as file:
                figure.savefig(file, dpi=120, format="png")
    return files


def values_figure(report: Report, measured: Sequence[Measured]) -> Figure:
    """A panel a metric: each condition's seeds, their mean and its interval."""
    rows = measured[0].rows
    figure = _panels(report, measured, [row.condition for row in rows],
                     lambda row: (row.values, row.mean))  # fmt: skip
    figure.suptitle(f"{report.study.title}: seeds, mean and {_interval(report)}")
    return figure


def differences_figure(report: Report, measured: Sequence[Measured]) -> Figure:
    """A panel a metric: each condition's differences from the baseline by seed."""
    rows = [row for row in measured[0].rows if row.baseline is not None]
    figure = _panels(report, measured, [row.condition for row in rows],
                     lambda row: (row.differences, row.difference))  # fmt: skip
    for axes in figure.axes:
        axes.axvline(0, color="black", linewidth=0.8)
    baseline = ", ".join(report.study.baseline.values())
    figure.suptitle(
        f"{report.study.title}: differences from {baseline} by seed, mean and {_interval(report)}"
    )
    return figure


def _panels(
    report: Report,
    measured: Sequence[Measured],
    conditions: Sequence[Mapping[str, str]],
    shown: Shown,
) -> Figure:
    labels = [", ".join(condition.values()) or report.study.name for condition in conditions]
    lines = math.ceil(len(measured) / MOST_PANELS)
    across = math.ceil(len(measured) / lines)
    figure = new_figure(2.5 + 3.2 * across, 0.6 + (1 + 0.35 * len(conditions)) * lines)
    panels = figure.subplots(lines, across, sharey=True, squeeze=False).ravel()
    for unused in panels[len(measured) :]:
        unused.set_visible(False)
    for axes, one in zip(panels, measured, strict=False):
        for place, condition in enumerate(conditions):
            row = next(row for row in one.rows if row.condition == condition)
            _dots(axes, place, *shown(row))
        axes.set_xlabel(f"{one.name} (%)")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(labels)), labels, fontsize=9)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure


def _dots(axes: Axes, place: int, values: Mapping[int, float], mean: Estimate | None) -> None:
    """Seeds a little above, their mean and interval below."""
    known = [value for value in values.values() if not math.isnan(value)]
    axes.plot(known, [place - 0.12] * len(known), "o", color=COLOURS[5], alpha=0.8, markersize=5)
    if mean is not None and not math.isnan(mean.mean):
        half = 0.0 if math.isnan(mean.low) else mean.high - mean.mean
        axes.errorbar(
            mean.mean, place + 0.12, xerr=half, fmt="D", color=COLOURS[1], markersize=5, capsize=3
        )


def _interval(report: Report) -> str:
    return f"its {100 * report.confidence:g}% interval"
