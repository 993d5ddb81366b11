"""What trainings wrote to ``metrics.json``: losses, contrastive weight and AP over iterations."""

from __future__ import annotations

import fnmatch
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clab_d2.errors import ConfigError, DataError
from clab_d2.evaluation.plots import COLOURS, DASHES, new_figure
from clab_d2.io import refuse_special_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Which metrics are drawn by default, in this order; shell patterns.
DEFAULT_METRICS = (
    "total_loss", "loss_*", "contrastive/weight", "*vid/AP50", "*vid/AP50-*", "*bbox/AP",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One metric of one run.

    Attributes:
        iterations: ascending.
        values: as many; may be NaN.
    """

    iterations: np.ndarray
    values: np.ndarray

    def smoothed(self, window: int) -> np.ndarray:
        """Means over ``window`` values at a time, as far as there are so many around each; NaNs
        are left out."""
        half = window // 2
        means = []
        for index in range(len(self.values)):
            around = self.values[max(index - half, 0) : index + half + 1]
            known = around[~np.isnan(around)]
            means.append(known.mean() if len(known) else np.nan)
        return np.array(means)


@dataclass(frozen=True)
class TrainingHistory:
    """The metrics of one run.

    Attributes:
        label: what plots call it.
        series: by metric.
    """

    label: str
    series: dict[str, Series]


def read_history(path: str | os.PathLike[str], label: str | None = None) -> TrainingHistory:
    """Read a training's ``metrics.json``: one JSON object a line, as Detectron2 writes it.

    A run that was broken off and resumed goes back some iterations: what it wrote last holds. A
    last line that was cut off is left out.

    Args:
        path: the file, or the ``OUTPUT_DIR`` that holds it.
        label: default: the folder's name.

    Raises:
        DataError: it is missing, or no such file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.json"
    refuse_special_file(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; name a training's metrics.json, or its folder"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    points: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is no JSON ({error})") from None
        iteration = record.get("iteration") if isinstance(record, dict) else None
        if not isinstance(iteration, int):
            raise DataError(
                f"{path}: line {number} has no iteration; name the metrics.json that a training "
                "wrote to its OUTPUT_DIR, not that of an evaluation"
            )
        for name, value in record.items():
            if name != "iteration" and isinstance(value, int | float):
                points.setdefault(name, {})[iteration] = float(value)
    series = {}
    for name, by_iteration in points.items():
        iterations = sorted(by_iteration)
        series[name] = Series(
            np.array(iterations), np.array([by_iteration[i] for i in iterations])
        )
    return TrainingHistory(label or path.resolve().parent.name, series)


def choose_metrics(
    histories: Sequence[TrainingHistory], patterns: Sequence[str] = DEFAULT_METRICS
) -> list[str]:
    """The metrics that any run has by shell patterns, in the patterns' order.

    Raises:
        ConfigError: there is none.
    """
    there = sorted({name for history in histories for name in history.series})
    chosen = dict.fromkeys(
        name for pattern in patterns for name in fnmatch.filter(there, pattern)
    )
    if not chosen:
        raise ConfigError(
            f"no metric is called {' or '.join(patterns)}; there are {', '.join(there) or 'none'}"
        )
    return list(chosen)


def history_figure(
    histories: Sequence[TrainingHistory], metrics: Sequence[str], smoothing: int = 1
) -> Figure:
    """A panel for each metric, a line for each run.

    Args:
        histories: the runs.
        metrics: what to draw.
        smoothing: a mean over so many values is drawn over the faint values; 1 draws these alone.
    """
    columns = min(4, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = new_figure(3.2 * columns + 0.3, 2.3 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    last = max(
        (h.series[m].iterations[-1] for h in histories for m in metrics if m in h.series),
        default=0,
    )  # fmt: skip
    for axes, metric in zip(panels, metrics, strict=False):
        for index, history in enumerate(histories):
            series = history.series.get(metric)
            if series is None:
                continue
            style = {
                "color": COLOURS[index % len(COLOURS)],
                "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
            }
            # Few points, such as one evaluation at the end, need marks to be seen.
            marks = {"marker": "o", "markersize": 4} if len(series.values) <= 12 else {}
            smooth = smoothing > 1 and not marks
            axes.plot(
                series.iterations, series.values, linewidth=0.6 if smooth else 1.4,
                alpha=0.35 if smooth else 1.0, **style, **marks,
            )  # fmt: skip
            if smooth:
                axes.plot(series.iterations, series.smoothed(smoothing), linewidth=1.6, **style)
        axes.set_title(metric, fontsize=9)
        axes.set_xlim(0, 1.03 * max(last, 1))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    for axes in list(figure.axes)[len(metrics) :]:
        axes.set_visible(False)
    for axes in list(figure.axes)[max(0, len(metrics) - columns) : len(metrics)]:
        axes.set_xlabel("iteration", fontsize=8)
    _legend(figure, [history.label for history in histories])
    return figure


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index // len(COLOURS) % len(DASHES)], label=label,
        )
        for index, label in enumerate(labels)
    ]  # fmt: skip
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=4)
