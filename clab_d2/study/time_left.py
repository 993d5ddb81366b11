"""How long runs take, and how long those that are left are going to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Going:
    """A run that is going on: its kind, seconds so far, and the done part (None: unknown)."""

    kind: str
    seconds: float
    done: float | None


def expected_seconds(
    finished: Iterable[tuple[str, float]], declared_hours: Mapping[str, float]
) -> dict[str, float]:
    """Kind of run -> seconds of one: the mean of finished ones, else what the study declares."""
    seconds: dict[str, list[float]] = {}
    for kind, duration in finished:
        seconds.setdefault(kind, []).append(duration)
    declared = {kind: 3600 * hours for kind, hours in declared_hours.items()}
    return declared | {kind: fmean(durations) for kind, durations in seconds.items()}


def seconds_left(
    expected: Mapping[str, float], waiting: Sequence[str], going: Sequence[Going], slots: int
) -> float | None:
    """Seconds until all runs are done; None where nothing is known of a kind of run.

    Args:
        expected: see :func:`expected_seconds`. Of a kind that is not in it, the runs that are
            going on tell by how far they are.
        waiting: the kinds of the runs that have not begun.
        going: those that have.
        slots: how many run side by side.
    """
    known = dict(expected)
    for run in going:
        if run.kind not in known and run.done:
            known[run.kind] = run.seconds / run.done
    if any(kind not in known for kind in (*waiting, *(run.kind for run in going))):
        return None
    work = sum(known[kind] for kind in waiting)
    for run in going:
        # What is done is a better clock than the mean, once there is some of it.
        total = run.seconds / run.done if run.done else known[run.kind]
        work += max(0.0, total - run.seconds)
    return work / max(1, min(slots, len(waiting) + len(going)))


def duration_text(seconds: float | None) -> str:
    """A duration for people, as "3.2 min"."""
    if seconds is None:
        return "an unknown time"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
