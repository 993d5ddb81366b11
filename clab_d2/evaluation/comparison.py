"""Several detectors side by side: figures with their spread over seeds, curves, worst videos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tabulate import tabulate

from clab_d2.evaluation.coco_metric import RECALL_POINTS
from clab_d2.evaluation.detections import Detections
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.evaluation.metrics import VID_NAMES, Metrics, compute_metrics, vid_precision
from clab_d2.evaluation.vid_metric import Curve, VIDPrecision, area_under, precision_recall


@dataclass(frozen=True)
class Run:
    """One detector's results, small enough to keep many.

    Attributes:
        label: runs of one config, with other seeds, share it.
        path: the predictions.
        metrics: all figures, in percent.
        curves: for each of AP50, AP50-slow, AP50-medium and AP50-fast, (101,) precision in percent
            at each of ``coco_metric.RECALL_POINTS`` (the best there or beyond), the mean over
            classes.
        video_ap: (V,) AP50 within each video, in percent; NaN for a video without objects.
        more: further figures that were asked for, by section ("flicker", "tracks") and name.
    """

    label: str
    path: str
    metrics: Metrics
    curves: dict[str, np.ndarray]
    video_ap: np.ndarray
    more: dict[str, dict[str, float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """All single figures, as "bbox/AP", "vid/AP50", "flicker/gaps" and the like."""
        sections = {"bbox": self.metrics.bbox, "vid": self.metrics.vid, **self.further_sections()}
        return {
            f"{section}/{name}": value
            for section, figures in sections.items()
            for name, value in figures.items()
        }

    def further_sections(self) -> dict[str, dict[str, float]]:
        """What the dataset's conditions and the command line add to the figures of all runs."""
        by_condition = self.metrics.vid_by_condition
        return {**({"vid/by-condition": by_condition} if by_condition else {}), **self.more}

    def as_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``, with a section for what else was asked for."""
        more = {
            section: {name: _null(value) for name, value in figures.items()}
            for section, figures in self.more.items()
        }
        return {**self.metrics.as_json(), **more}


@dataclass(frozen=True)
class Spread:
    """A figure over the runs of one config: its mean and sample standard deviation.

    Attributes:
        mean, std: NaN where no run has the figure; ``std`` also where only one has.
        count: the runs that have it.
    """

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of some figures, leaving NaN out."""
        known = [value for value in values if not math.isnan(value)]
        return cls(
            mean=float(np.mean(known)) if known else math.nan,
            std=float(np.std(known, ddof=1)) if len(known) > 1 else math.nan,
            count=len(known),
        )

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.2f}" + ("" if math.isnan(self.std) else f" ± {self.std:.2f}")

    def as_json(self) -> dict[str, float | int | None]:
        """Mean, std and count; null for NaN."""
        return {"mean": _null(self.mean), "std": _null(self.std), "count": self.count}


@dataclass(frozen=True)
class Comparison:
    """Runs on one dataset.

    Attributes:
        truth: the dataset.
        runs: in the order given.
        groups: the runs by label, in the order of their first run.
    """

    truth: GroundTruth
    runs: list[Run]
    groups: dict[str, list[Run]] = field(init=False)

    def __post_init__(self) -> None:
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(run.label, []).append(run)
        object.__setattr__(self, "groups", groups)

    def spreads(self, label: str) -> dict[str, Spread]:
        """All figures of one group, as "bbox/AP" and the like."""
        figures = [run.figures() for run in self.groups[label]]
        return {name: Spread.of([each[name] for each in figures]) for name in figures[0]}

    def class_spreads(self, label: str, name: str = "AP50") -> dict[str, Spread]:
        """A VID figure of each class, by class name."""
        runs = self.groups[label]
        return {
            class_name: Spread.of([run.metrics.vid_per_class[name][class_name] for run in runs])
            for class_name in self.truth.class_names
        }

    def worst_videos(self, count: int) -> list[tuple[str, int, dict[str, Spread]]]:
        """The videos with the lowest AP50, averaged over the groups.

        A video's AP50 ranks its own detections only, and is the mean over the classes that it
        shows; so it compares detectors on a video rather than adding up to the dataset's AP50.

        Returns:
            Up to ``count`` times the video's name, its number of frames and each group's figure.
        """
        by_label = {
            label: np.mean([run.video_ap for run in runs], axis=0)
            for label, runs in self.groups.items()
        }
        mean = np.mean(list(by_label.values()), axis=0)
        known = np.flatnonzero(~np.isnan(mean))
        worst = known[np.argsort(mean[known], kind="stable")][:count]
        frames = np.bincount(self.truth.video_of_image, minlength=len(mean))
        return [
            (
                self.truth.video_names[video],
                int(frames[video]),
                {
                    label: Spread.of([float(run.video_ap[video]) for run in runs])
                    for label, runs in self.groups.items()
                },
            )
            for video in worst
        ]

    def overall_table(self) -> str:
        """A line for each group."""
        rows = []
        for label, runs in self.groups.items():
            figures = self.spreads(label)
            shown = [figures[f"vid/{name}"] for name in VID_NAMES]
            shown += [figures[f"bbox/{name}"] for name in ("AP", "AP50", "AP75")]
            rows.append([label, len(runs), *map(str, shown)])
        headers = ["", "runs", *(f"VID {name}" for name in VID_NAMES)]
        table = _table(rows, [*headers, "COCO AP", "COCO AP50", "COCO AP75"])
        if any(len(runs) > 1 for runs in self.groups.values()):
            table += "\n± is the sample standard deviation over the runs of a config."
        return table

    def more_tables(self) -> str:
        """A table for each section of further figures, a line for each group; or nothing."""
        tables = []
        for section, figures in self.runs[0].further_sections().items():
            rows = []
            for label in self.groups:
                spreads = self.spreads(label)
                rows.append([label, *(str(spreads[f"{section}/{name}"]) for name in figures)])
            tables.append(_table(rows, [section, *figures]))
        return "\n\n".join(tables)

    def class_table(self) -> str:
        """A line for each class that has objects, and the difference of two groups."""
        columns = {label: self.class_spreads(label) for label in self.groups}
        difference = len(columns) == 2
        rows = []
        for name in self.truth.class_names:
            figures = [column[name] for column in columns.values()]
            if not any(figure.count for figure in figures):
                continue  # as in a single run's table: a class without objects tells nothing
            row = [name, *map(str, figures)]
            if difference:
                change = figures[1].mean - figures[0].mean
                row.append("-" if math.isnan(change) else f"{change:+.2f}")
            rows.append(row)
        headers = ["VID AP50", *columns, *(["difference"] if difference else [])]
        return _table(rows, headers)

    def worst_table(self, count: int) -> str:
        """A line for each of the worst videos; nothing if no video has an object."""
        worst = self.worst_videos(count)
        if not worst:
            return ""
        rows = [[name, frames, *map(str, by.values())] for name, frames, by in worst]
        return (
            "Worst videos, by AP50 within the video (mean over the classes that it shows):\n"
            + _table(rows, ["video", "frames", *self.groups])
        )

    def as_json(self, num_worst: int = 10) -> dict[str, Any]:
        """Each run's metrics, each group's mean and spread, and the worst videos."""
        return {
            "runs": [
                {"label": run.label, "predictions": run.path, **run.as_json()} for run in self.runs
            ],
            "groups": {
                label: {
                    **_nested({k: v.as_json() for k, v in self.spreads(label).items()}),
                    "per-class": {k: v.as_json() for k, v in self.class_spreads(label).items()},
                }
                for label in self.groups
            },
            "worst-videos": [
                {
                    "video": name,
                    "frames": frames,
                    "AP50": {label: spread.as_json() for label, spread in by.items()},
                }
                for name, frames, by in self.worst_videos(num_worst)
            ],
        }


def measure_run(
    truth: GroundTruth,
    detections: Detections,
    label: str,
    path: str,
    more: Mapping[str, Mapping[str, float]] | None = None,
) -> Run:
    """Evaluate one set of detections, with curves and by video; ``more`` are further figures."""
    precision = vid_precision(truth, detections)
    curves = {
        name: mean_curve([curve for curve in precision.curves(subset) if curve is not None])
        for name, subset in VID_NAMES.items()
    }
    metrics = compute_metrics(truth, detections, precision)
    video_ap = video_average_precision(truth, detections, precision)
    sections = {section: dict(figures) for section, figures in (more or {}).items()}
    return Run(label, path, metrics, curves, video_ap, sections)


def mean_curve(curves: Sequence[Curve]) -> np.ndarray:
    """(101,) percent: the best precision at or beyond each recall, the mean over some classes."""
    if not curves:
        return np.full(len(RECALL_POINTS), np.nan)
    rows = []
    for curve in curves:
        best = np.maximum.accumulate(curve.precision[::-1])[::-1]
        place = np.searchsorted(curve.recall, RECALL_POINTS, side="left")
        rows.append(np.append(best, 0.0)[place])
    return 100 * np.mean(rows, axis=0)


def video_average_precision(
    truth: GroundTruth, detections: Detections, precision: VIDPrecision
) -> np.ndarray:
    """(V,) AP50 within each video, in percent (see :meth:`Comparison.worst_videos`)."""
    num_videos, num_classes = len(truth.video_names), len(truth.class_names)
    counted = ~truth.crowd
    key_of_object = truth.video_of_image[truth.image] * num_classes + truth.class_index
    positives = np.bincount(key_of_object[counted], minlength=num_videos * num_classes)
    # In its order detections of a class lie by falling score; a stable sort by video and
    # class leaves each of these so.
    order = precision.order
    key = truth.video_of_image[detections.image[order]] * num_classes
    key += detections.class_index[order]
    by_key = np.argsort(key, kind="stable")
    start = np.searchsorted(key[by_key], np.arange(num_videos * num_classes + 1))
    verdicts = precision.verdicts("all")
    ap = np.full(num_videos * num_classes, np.nan)
    for index in np.flatnonzero(positives):
        rows = by_key[start[index] : start[index + 1]]
        ap[index] = area_under(
            precision_recall(
                verdicts.right[rows],
                verdicts.wrong[rows],
                precision.score[rows],
                int(positives[index]),
            )
        )
    ap = ap.reshape(num_videos, num_classes)
    shown = (~np.isnan(ap)).sum(axis=1)
    total = np.nansum(ap, axis=1)
    return np.divide(100 * total, shown, out=np.full(num_videos, np.nan), where=shown > 0)


def _nested(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        outer, inner = key.split("/", 1)
        nested.setdefault(outer, {})[inner] = value
    return nested


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _table(rows: list[list[Any]], headers: Sequence[str]) -> str:
    return tabulate(
        rows,
        headers=headers,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *["right"] * (len(headers) - 1)),
    )
