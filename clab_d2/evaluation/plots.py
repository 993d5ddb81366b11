"""Plots of a comparison: precision-recall curves, AP by motion and by class, worst videos."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clab_d2.evaluation.coco_metric import RECALL_POINTS
from clab_d2.evaluation.comparison import Comparison
from clab_d2.evaluation.metrics import VID_NAMES
from clab_d2.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Told apart with any colour vision (Okabe and Ito, 2008); lines also differ in their dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


def draw_all(comparison: Comparison, folder: str | os.PathLike[str], num_worst: int) -> list[Path]:
    """Write the plots as PNG.

    Returns:
        The files.
    """
    folder = Path(folder)
    figures = {
        "precision_recall": precision_recall_figure(comparison),
        "ap_by_motion": motion_figure(comparison),
        "ap_by_class": class_figure(comparison),
    }
    if comparison.worst_videos(num_worst):
        figures["worst_videos"] = worst_videos_figure(comparison, num_worst)
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        with atomic_write(files[-1], "wb") as file:
            figure.savefig(file, dpi=120, format="png")
    return files


def new_figure(width: float, height: float) -> Figure:
    # No pyplot: it keeps global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(index: int) -> dict[str, str]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def precision_recall_figure(comparison: Comparison) -> Figure:
    """A panel each for all, slow, medium and fast; a group's runs thin, their mean thick."""
    figure = new_figure(11, 9)
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, VID_NAMES.items(), strict=True):
        for index, (label, runs) in enumerate(comparison.groups.items()):
            curves = np.stack([run.curves[name] for run in runs])
            ap = comparison.spreads(label)[f"vid/{name}"]
            if len(runs) > 1:
                axes.plot(RECALL_POINTS, curves.T, linewidth=0.6, alpha=0.5, **_style(index))
            axes.plot(
                RECALL_POINTS,
                curves.mean(axis=0),
                linewidth=2,
                label=f"{label}: {ap}",
                **_style(index),
            )
        axes.set(
            title=f"{title} objects", xlabel="recall", ylabel="precision (%)",
            xlim=(0, 1), ylim=(0, 102),
        )  # fmt: skip
        axes.grid(alpha=0.3)
        axes.legend(title="AP50", fontsize=8)
    figure.suptitle("Precision at IoU 0.5, mean over classes")
    return figure


def motion_figure(comparison: Comparison) -> Figure:
    """AP50 over all, slow, medium and fast objects, a bar for each group."""
    figure = new_figure(2 + 1.2 * len(VID_NAMES) + 0.5 * len(comparison.groups), 4.5)
    axes = figure.subplots()
    width = 0.8 / len(comparison.groups)
    for index, label in enumerate(comparison.groups):
        spreads = [comparison.spreads(label)[f"vid/{name}"] for name in VID_NAMES]
        heights = [0.0 if math.isnan(spread.mean) else spread.mean for spread in spreads]
        bars = axes.bar(
            np.arange(len(spreads)) + (index - (len(comparison.groups) - 1) / 2) * width,
            heights,
            width,
            yerr=[0.0 if math.isnan(spread.std) else spread.std for spread in spreads],
            capsize=3,
            label=label,
            color=COLOURS[index % len(COLOURS)],
        )
        texts = ["-" if math.isnan(spread.mean) else f"{spread.mean:.1f}" for spread in spreads]
        axes.bar_label(bars, texts, fontsize=8, padding=2)
    axes.set_xticks(np.arange(len(VID_NAMES)), list(VID_NAMES.values()))
    axes.set(ylabel="AP50 (%)", title="AP50 by speed of the object", ylim=(0, 108))
    axes.grid(axis="y", alpha=0.3)
    _legend(figure)
    return figure


def class_figure(comparison: Comparison) -> Figure:
    """AP50 of each class that has objects, a dot for each group, by falling AP of the first."""
    columns = {label: comparison.class_spreads(label) for label in comparison.groups}
    first = next(iter(columns.values()))
    names = [name for name, spread in first.items() if not math.isnan(spread.mean)]
    names.sort(key=lambda name: -first[name].mean)
    return _dots(
        "AP50 by class",
        names,
        {label: [column[name] for name in names] for label, column in columns.items()},
    )


def worst_videos_figure(comparison: Comparison, count: int) -> Figure:
    """AP50 within each of the worst videos, a dot for each group."""
    worst = comparison.worst_videos(count)
    return _dots(
        "Worst videos: AP50 within the video",
        [f"{name} ({frames} frames)" for name, frames, _ in worst],
        {label: [by[label] for _, _, by in worst] for label in comparison.groups},
    )


def _dots(title: str, names: list[str], columns: dict[str, list]) -> Figure:
    figure = new_figure(8, 1.5 + 0.28 * len(names))
    axes = figure.subplots()
    for index, (label, spreads) in enumerate(columns.items()):
        # Side by side, so that equal figures don't hide each other.
        offset = (index - (len(columns) - 1) / 2) * 0.5 / len(columns)
        axes.errorbar(
            [spread.mean for spread in spreads],
            np.arange(len(names)) + offset,
            xerr=[0.0 if math.isnan(spread.std) else spread.std for spread in spreads],
            fmt="o",
            markersize=5,
            capsize=2,
            label=label,
            color=COLOURS[index % len(COLOURS)],
        )
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="AP50 (%)", title=title, xlim=(-2, 102))
    axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """Below the axes, where it hides nothing."""
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
