"""The weight of the contrastive loss over time ("dynamic loss weighting")."""

from __future__ import annotations

import math
from collections.abc import Callable

from clab_d2.errors import ConfigError

# Name -> the share of the start weight at a progress from 0 (start) to 1 (the last step).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


def contrastive_weight(
    iteration: int, *, start: float, steps: int, schedule: str = "linear"
) -> float:
    """Weight of the contrastive loss at an iteration.

    Args:
        iteration: training iteration, from 0.
        start: weight at iteration 0.
        steps: iteration at which "linear" and "cosine" reach 0, to stay there.
        schedule: "linear" (the paper's), "cosine" or "constant".
    """
    if schedule not in SCHEDULES:
        raise ConfigError(
            f"MODEL.CONTRASTIVE.WEIGHT.SCHEDULE {schedule!r} is unknown; choose one of "
            f"{tuple(SCHEDULES)}"
        )
    progress = min(iteration / steps, 1.0) if steps > 0 else 1.0
    return start * SCHEDULES[schedule](progress)
