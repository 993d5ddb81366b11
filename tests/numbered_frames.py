"""Frames that tell their number: as arrays, as pictures, and from a camera."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np


def grey(number: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """A frame that tells its number."""
    return np.full((*size, 3), number % 256, np.uint8)


def write_pictures(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), grey(number))
    return folder


class FakeCapture:
    """A camera of 200 numbered frames, one in two milliseconds; then it is unplugged."""

    def __init__(self, index: int) -> None:
        self.index, self.taken = index, 0

    def isOpened(self) -> bool:
        return self.index == 2

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FRAME_WIDTH: 32, cv2.CAP_PROP_FRAME_HEIGHT: 24}.get(what, 0)

    def set(self, what: int, value: float) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.002)
        if self.taken == 200:
            return False, None
        self.taken += 1
        return True, np.full((24, 32, 3), (self.taken, 2, 3), np.uint8)  # BGR

    def release(self) -> None:
        self.taken = 200
