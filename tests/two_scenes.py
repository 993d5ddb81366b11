"""A made-up film of two scenes, and its cut."""

from __future__ import annotations

import numpy as np

#: The first frame of the second scene.
CUT = 20
NUM_FRAMES = 37


def two_scenes(size: tuple[int, int] = (24, 32)) -> list[np.ndarray]:
    """Frames that tell their number, RGB uint8 (*size, 3): dark grey ones, then bright red ones."""
    dark = [np.full((*size, 3), number, np.uint8) for number in range(CUT)]
    bright = [np.full((*size, 3), (220, 40, number), np.uint8) for number in range(CUT, NUM_FRAMES)]
    return dark + bright
