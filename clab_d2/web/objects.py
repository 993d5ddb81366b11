"""What a video holds, summed up: a row for each class or track, and when each is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from clab_d2.evaluation.plots import new_figure
from clab_d2.visualization import class_colour, track_colour
from clab_d2.web.video_job import VideoJob

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ObjectRow:
    """A class, or a track, over a video.

    Attributes:
        label: name of the class, with the track's number where there is one.
        class_index: from 0.
        colour: RGB, 0 to 255, as the drawn video has it.
        frames: numbers of the frames that it is seen in, ascending.
        most: how many of them at once, at most.
        best, mean: scores, from 0 to 1.
    """

    label: str
    class_index: int
    colour: tuple[int, int, int]
    frames: list[int]
    most: int
    best: float
    mean: float

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First frame and length of each stretch of frames without a gap."""
        runs = []
        for _, group in groupby(enumerate(self.frames), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in group]
            runs.append((numbers[0], len(numbers)))
        return runs


def sum_up(job: VideoJob, score_threshold: float) -> list[ObjectRow]:
    """A row for each class that is detected with at least a score, or for each track where the
    job has them, beside what is in none; those seen longest first."""
    scores: dict[tuple[int, int], list[float]] = {}
    frames: dict[tuple[int, int], list[int]] = {}
    for number, found in enumerate(job.instances):
        tracks = found.track_ids.tolist() if job.tracked else [-1] * len(found)
        rows = zip(found.scores.tolist(), found.pred_classes.tolist(), tracks, strict=True)
        for score, index, track in rows:
            if score >= score_threshold:
                scores.setdefault((index, track), []).append(score)
                frames.setdefault((index, track), []).append(number)
    table = []
    for (index, track), values in scores.items():
        numbers, counts = np.unique(frames[index, track], return_counts=True)
        table.append(
            ObjectRow(
                label=job.class_names[index] + (_numbered(track) if job.tracked else ""),
                class_index=index,
                colour=track_colour(track) if job.tracked else class_colour(index),
                frames=numbers.tolist(),
                most=int(counts.max()),
                best=max(values),
                mean=float(np.mean(values)),
            )
        )
    return sorted(table, key=lambda row: (-len(row.frames), row.label))


def _numbered(track: int) -> str:
    return f" #{track}" if track >= 0 else " (no track)"


TABLE_HEADERS = ("object", "seen (s)", "from (s)", "to (s)", "at once", "best score", "mean score")


def table_of(rows: Sequence[ObjectRow], fps: float) -> list[list[object]]:
    """Cells under ``TABLE_HEADERS``; times in seconds, scores in percent."""
    return [
        [
            row.label,
            f"{len(row.frames) / fps:.1f}",
            f"{row.frames[0] / fps:.1f}",
            f"{(row.frames[-1] + 1) / fps:.1f}",
            row.most,
            f"{100 * row.best:.0f}%",
            f"{100 * row.mean:.0f}%",
        ]
        for row in rows
    ]


def html_table(jobs: Sequence[tuple[VideoJob, Sequence[ObjectRow]]]) -> str:
    """The rows of one job or several as a table of a page, names escaped, each with its colour."""
    if not any(rows for _, rows in jobs):
        return "<p>Nothing is detected with so high a score: lower the threshold.</p>"
    headers = [*(["model"] if len(jobs) > 1 else []), *TABLE_HEADERS]
    lines = ["".join(f"<th>{escape(header)}</th>" for header in headers)]
    for job, rows in jobs:
        for row, cells in zip(rows, table_of(rows, job.fps), strict=True):
            shown = [*([job.model_name] if len(jobs) > 1 else []), *cells]
            colour = "#{:02x}{:02x}{:02x}".format(*row.colour)
            mark = f'<td style="border-left: 0.5em solid {colour}">'
            text = "".join(f"<td>{escape(str(cell))}</td>" for cell in shown)
            lines.append(text.replace("<td>", mark, 1))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def timeline_figure(jobs: Sequence[tuple[VideoJob, Sequence[ObjectRow]]]) -> Figure:
    """When each object is seen: a bar for each stretch, a panel for each job."""
    most = 20
    heights = [max(1, min(len(rows), most)) for _, rows in jobs]
    figure = new_figure(7, 0.7 * len(jobs) + 0.28 * sum(heights))
    panels = figure.subplots(len(jobs), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (job, rows) in zip(panels, jobs, strict=True):
        for place, row in enumerate(rows[:most]):
            colour = np.array(row.colour) / 255
            spans = [(start / job.fps, length / job.fps) for start, length in row.spans]
            axes.broken_barh(spans, (place - 0.38, 0.76), facecolors=[colour])
        shown = [row.label for row in rows[:most]]
        axes.set_yticks(range(len(shown)), shown, fontsize=8)
        axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
        axes.set_xlim(0, max(len(job.instances), 1) / job.fps)
        more = f" (the first {most} of {len(rows)})" if len(rows) > most else ""
        axes.set_title(f"{job.model_name}: when each object is seen{more}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("seconds", fontsize=8)
    return figure
