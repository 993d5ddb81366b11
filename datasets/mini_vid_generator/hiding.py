"""What hides an object's markings: blur, defocus, darkness, fog, and plants or a fence before it.

Colours are float32 RGB in 0..1; lengths are pixels of the supersampled canvas.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from .background import SHIFT, fill

Extent = tuple[float, float, float, float]  # x0, y0, x1, y1

_FOG = np.array((0.74, 0.76, 0.78), np.float32)
_NIGHT = np.array((0.36, 0.38, 0.48), np.float32)
#: What is left of an object's colours when it stands against the light.
SHADE = np.array((0.20, 0.20, 0.24), np.float32)


def motion_kernel(length: float, angle: float) -> np.ndarray:
    """A straight blur of ``length`` pixels at ``angle`` radians; its weights sum to 1."""
    size = int(np.ceil(length)) | 1
    kernel = np.zeros((size, size), np.float32)
    middle, reach = (size - 1) / 2, (size - 1) / 2
    dx, dy = np.cos(angle) * reach, np.sin(angle) * reach
    one = 1 << SHIFT
    start = (round((middle - dx) * one), round((middle - dy) * one))
    end = (round((middle + dx) * one), round((middle + dy) * one))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA, SHIFT)
    return kernel / kernel.sum()


def blur(picture: np.ndarray, kind: str, size: float, angle: float) -> np.ndarray:
    """``picture`` (H, W, C) with the motion blur or defocus of an object ``size`` pixels wide."""
    if kind == "motion_blur":
        kernel = motion_kernel(float(np.clip(0.24 * size, 12, 40)), angle)
        return cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    sigma = float(np.clip(0.045 * size, 3.0, 8.0))
    return cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def hide_frame(picture: np.ndarray, kind: str, size: float, angle: float) -> np.ndarray:
    """A whole frame in motion blur, out of focus, in fog or in the dark."""
    if kind == "fog":
        return cv2.GaussianBlur(picture, (0, 0), 2.5) * 0.45 + _FOG * 0.55
    if kind == "darkness":
        grey = picture.mean(axis=2, keepdims=True)
        return (0.45 * picture + 0.55 * grey) * _NIGHT
    return blur(picture, kind, size, angle)


def cover(
    canvas: np.ndarray, kind: str, extent: Extent, drift: float, rng: np.random.Generator
) -> None:
    """Draw tall grass, leaves or a fence before an object.

    Args:
        canvas: drawn on in place.
        kind: ``grass``, ``leaves`` or ``fence``.
        extent: of the object.
        drift: how far the cover has moved to the right.
        rng: the same state gives the same plants.
    """
    draw, colour = _COVERS[kind]
    draw(canvas, extent, np.array(colour) + rng.uniform(-0.06, 0.06, 3), drift, rng)


def _grass(
    canvas: np.ndarray, extent: Extent, base: np.ndarray, drift: float, rng: np.random.Generator
) -> None:
    x0, y0, x1, y1 = extent
    w, h = x1 - x0, y1 - y0
    count = int(np.clip(w / 3.4, 20, 80))
    feet, lean = rng.uniform(-0.10, 1.10, count), rng.uniform(-0.18, 0.18, count) * h
    height, tone = rng.uniform(0.52, 0.95, count) * h, rng.uniform(-0.13, 0.13, count)
    half, ground = 0.016 * w + 2, y1 + 0.06 * h
    for i in range(count):
        x, top = x0 + feet[i] * w + drift, y1 - height[i]
        bend = (x + lean[i] / 2, (ground + top) / 2)
        blade = np.array([(x - half, ground), bend, (x + lean[i], top), (x + half, ground)])
        fill(canvas, blade, tuple(np.clip(base + tone[i], 0, 1).tolist()))


def _leaves(
    canvas: np.ndarray, extent: Extent, base: np.ndarray, drift: float, rng: np.random.Generator
) -> None:
    x0, y0, x1, y1 = extent
    w, h = x1 - x0, y1 - y0
    count = 50
    at = rng.uniform((-0.05, 0.16), (1.05, 1.06), (count, 2)) * (w, h) + (x0 + drift, y0)
    tone, angle = rng.uniform(-0.10, 0.16, count), rng.uniform(0, 180, count)
    axes = (max(3, int(0.085 * w)), max(2, int(0.045 * w)))
    for i in range(count):
        colour = tuple(np.clip(base + tone[i], 0, 1).tolist())
        centre = (int(at[i, 0]), int(at[i, 1]))
        cv2.ellipse(canvas, centre, axes, float(angle[i]), 0, 360, colour, -1, cv2.LINE_AA)


def _fence(
    canvas: np.ndarray, extent: Extent, base: np.ndarray, drift: float, rng: np.random.Generator
) -> None:
    x0, y0, x1, y1 = extent
    w, h = x1 - x0, y1 - y0
    boards = 9
    gap = 1.2 * w / boards
    foot, shoulder, tip = y1 + 0.05 * h, y0 + 0.34 * h, y0 + 0.24 * h
    left, right = x0 - 0.15 * w, x1 + 0.15 * w
    for i in range(boards + 1):
        x = left + i * gap + drift % gap
        middle, end = x + 0.3 * gap, x + 0.6 * gap
        board = np.array([(x, foot), (x, shoulder), (middle, tip), (end, shoulder), (end, foot)])
        tone = rng.uniform(-0.05, 0.05)
        fill(canvas, board, tuple(np.clip(base + tone, 0, 1).tolist()))
    for level in (0.45, 0.80):
        top, bottom = y0 + level * h, y0 + (level + 0.07) * h
        rail = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        fill(canvas, rail, tuple(np.clip(base * 0.85, 0, 1).tolist()))


_Cover = Callable[[np.ndarray, Extent, np.ndarray, float, np.random.Generator], None]
_COVERS: dict[str, tuple[_Cover, tuple[float, float, float]]] = {
    "grass": (_grass, (0.30, 0.40, 0.14)),
    "leaves": (_leaves, (0.16, 0.32, 0.12)),
    "fence": (_fence, (0.50, 0.38, 0.26)),
}
