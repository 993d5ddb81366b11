"""Backgrounds in three layers (sky, far layer, ground) that move past one another with the camera.

Pictures are float32 RGB in 0..1, drawn at ``SS`` times the size of the frame and averaged down.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SS = 2  # supersampling
SHIFT = 4  # fractional bits of OpenCV's coordinates
_MARGIN = 0.75  # a background reaches this many frame widths beyond each side

Colour = tuple[float, ...]


@dataclass(frozen=True)
class Background:
    """Layers from far to near, each (H * SS, W', 4) RGBA, and how much of the pan each follows."""

    layers: list[np.ndarray]
    parallax: tuple[float, ...] = (0.15, 0.45, 1.0)


@dataclass(frozen=True)
class Palette:
    ground: Colour
    stroke: Colour  # of grass and the like
    far: Colour  # hills, trees, houses, the sea
    sky: Colour
    haze: Colour  # the sky at the horizon


PALETTES = {
    "meadow": Palette(
        (0.36, 0.50, 0.22),
        (0.24, 0.38, 0.14),
        (0.22, 0.36, 0.20),
        (0.42, 0.62, 0.88),
        (0.80, 0.88, 0.94),
    ),
    "savanna": Palette(
        (0.66, 0.57, 0.33),
        (0.50, 0.42, 0.20),
        (0.45, 0.46, 0.26),
        (0.50, 0.66, 0.86),
        (0.93, 0.88, 0.76),
    ),
    "snow": Palette(
        (0.84, 0.87, 0.91),
        (0.72, 0.77, 0.84),
        (0.40, 0.48, 0.52),
        (0.60, 0.68, 0.78),
        (0.86, 0.88, 0.90),
    ),
    "shore": Palette(
        (0.76, 0.69, 0.53),
        (0.64, 0.56, 0.40),
        (0.28, 0.48, 0.60),
        (0.44, 0.66, 0.90),
        (0.82, 0.90, 0.95),
    ),
    "forest": Palette(
        (0.24, 0.34, 0.17),
        (0.16, 0.26, 0.10),
        (0.13, 0.22, 0.12),
        (0.40, 0.52, 0.45),
        (0.56, 0.66, 0.55),
    ),
    "street": Palette(
        (0.47, 0.47, 0.48),
        (0.40, 0.40, 0.41),
        (0.55, 0.48, 0.44),
        (0.55, 0.68, 0.85),
        (0.86, 0.88, 0.90),
    ),
    "highway": Palette(
        (0.42, 0.43, 0.44),
        (0.36, 0.37, 0.38),
        (0.32, 0.44, 0.26),
        (0.46, 0.64, 0.88),
        (0.84, 0.88, 0.90),
    ),
}
_PAVED = ("street", "highway")


def fill(canvas: np.ndarray, polygon: np.ndarray, value: Colour | float) -> None:
    """Fill a polygon given in the canvas' pixels (pixel i covers [i, i + 1))."""
    points = np.round((polygon - 0.5) * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [points], value, cv2.LINE_AA, SHIFT)


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise of about unit amplitude, (height, width)."""
    grid = rng.standard_normal((int(height / cell) + 3, int(width / cell) + 3)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _opaque(colour: np.ndarray | Colour) -> Colour:
    return (*np.clip(colour, 0, 1).tolist(), 1.0)


def _vary(colour: Colour, rng: np.random.Generator) -> Colour:
    """Lighter or darker, and hardly another hue."""
    return _opaque(np.array(colour) + rng.uniform(-0.05, 0.05) + rng.uniform(-0.02, 0.02, 3))[:3]


def make_background(
    kind: str, width: int, height: int, horizon: float, rng: np.random.Generator
) -> Background:
    """A background for frames of ``width`` x ``height``, wider than those by a pan.

    Args:
        kind: a kind of landscape: meadow, savanna, snow, shore, forest, street or highway.
        width, height: of the frame, in pixels.
        horizon: its height, 0 (top) to 1.
        rng: source of all variety.
    """
    base = PALETTES[kind]
    colours = [_vary(c, rng) for c in (base.ground, base.stroke, base.far, base.sky, base.haze)]
    palette = Palette(*colours)
    shape = (height * SS, int(width * SS * (1 + 2 * _MARGIN)))
    line = int(horizon * shape[0])
    sky = _sky(shape, horizon, palette, rng)
    far = np.zeros((*shape, 4), np.float32)
    if kind == "street":
        _draw_houses(far, line, palette, rng)
    elif kind == "shore":
        _draw_sea(far, line, palette, rng)
    else:
        _draw_hills(far, line, palette, rng)
        trees = int(rng.integers(10, 90 if kind == "forest" else 40))
        _draw_trees(far, line, trees, 1.0 if kind == "snow" else 0.3, palette, rng)
    ground = _ground(shape, line, kind, palette, rng)
    _draw_clutter(ground, line, rng)
    return Background([sky, far, ground])


def _sky(
    shape: tuple[int, int], horizon: float, palette: Palette, rng: np.random.Generator
) -> np.ndarray:
    h, w = shape
    down = np.clip(np.linspace(0, 1, h) / max(horizon, 0.05), 0, 1)[:, None]
    column = np.array(palette.sky) * (1 - down) + np.array(palette.haze) * down
    sky = np.repeat(column[:, None].astype(np.float32), w, axis=1)
    cloud = np.clip(_noise(rng, h, w, h * 0.22) * 0.6 + _noise(rng, h, w, h * 0.08) * 0.3, 0, 1)
    sky += (1 - sky) * (cloud * 0.6)[..., None]
    return np.dstack([sky, np.ones(shape, np.float32)])


def _draw_houses(layer: np.ndarray, line: int, palette: Palette, rng: np.random.Generator) -> None:
    h, w = layer.shape[:2]
    x = 0.0
    while x < w:
        wide, high = rng.uniform(0.16, 0.4) * h, rng.uniform(0.5, 1.1) * line
        colour = np.array(palette.far) + rng.uniform(-0.18, 0.18)
        x0, x1, y0 = int(x), min(int(x + wide), w), max(int(line - high), 0)
        layer[y0 : line + 4, x0:x1] = _opaque(colour)
        for top in range(y0 + 6, line - 6, 16):
            for left in range(x0 + 5, x1 - 8, 14):
                layer[top : top + 8, left : left + 7] = _opaque(colour * 0.55)
        x += wide + rng.uniform(0, 0.05) * h


def _draw_sea(layer: np.ndarray, line: int, palette: Palette, rng: np.random.Generator) -> None:
    layer[int(line * 0.72) : line + 8] = _opaque(palette.far)
    glint = _opaque(np.array(palette.far) + 0.16)
    for _ in range(70):
        x, y = int(rng.uniform(0, layer.shape[1])), int(rng.uniform(line * 0.74, line + 6))
        cv2.line(layer, (x, y), (int(x + rng.uniform(10, 40)), y), glint, 1)


def _draw_hills(layer: np.ndarray, line: int, palette: Palette, rng: np.random.Generator) -> None:
    h, w = layer.shape[:2]
    ridge = line - h * (0.07 + 0.05 * _noise(rng, 1, w, h * 0.5)[0])
    outline = np.stack([np.arange(0, w, 4), ridge[::4]], 1)
    outline = np.concatenate([outline, [(w, line + 6), (0, line + 6)]])
    fill(layer, outline, _opaque(np.array(palette.far) * 0.6 + np.array(palette.haze) * 0.4))


def _draw_trees(
    layer: np.ndarray,
    line: int,
    count: int,
    firs: float,
    palette: Palette,
    rng: np.random.Generator,
) -> None:
    """Trees on the horizon, a share ``firs`` of them pointed and the others round."""
    h, w = layer.shape[:2]
    for _ in range(count):
        x, size = rng.uniform(0, w), rng.uniform(0.05, 0.16) * h
        colour = _opaque(np.array(palette.far) + rng.uniform(-0.06, 0.06))
        if rng.random() < firs:
            foot, top = line + 4, line - 2 * size
            fill(layer, np.array([(x - size / 2, foot), (x, top), (x + size / 2, foot)]), colour)
        else:
            centre, axes = (int(x), int(line - size * 0.6)), (int(size), int(size * 0.8))
            cv2.ellipse(layer, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)


def _ground(
    shape: tuple[int, int], line: int, kind: str, palette: Palette, rng: np.random.Generator
) -> np.ndarray:
    h, w = shape
    layer = np.zeros((h, w, 4), np.float32)
    texture = 0.05 * _noise(rng, h, w, 40) + 0.035 * _noise(rng, h, w, 9)
    texture += 0.02 * rng.standard_normal((h, w)).astype(np.float32)
    depth = np.clip((np.arange(h) - line) / (h - line), 0, 1).astype(np.float32)
    colour = np.clip(np.array(palette.ground, np.float32) + texture[..., None], 0, 1)
    layer[..., :3] = colour * (0.86 + 0.18 * depth)[:, None, None]
    if kind in _PAVED:
        kerb, middle = line + int(0.10 * (h - line)), line + int(0.5 * (h - line))
        verge = np.array((0.60, 0.58, 0.55) if kind == "street" else palette.far)
        layer[line:kerb, :, :3] = verge + texture[line:kerb, :, None]
        for x in range(int(rng.integers(0, 40)), w, 96):
            layer[middle : middle + 5, x : x + 48, :3] = (0.88, 0.86, 0.80)
        edge = np.full(w, float(line))
    else:
        _draw_strokes(layer, line, palette, rng)
        edge = line + 3 * _noise(rng, 1, w, 30)[0]
    layer[..., 3] = np.clip(np.arange(h)[:, None] - edge[None, :], 0, 1)
    return layer


def _draw_strokes(layer: np.ndarray, line: int, palette: Palette, rng: np.random.Generator) -> None:
    """Tufts of grass, ripples of sand or snow: longer towards the viewer."""
    h, w = layer.shape[:2]
    count = int(w * (h - line) / 260)
    xs, ys = rng.uniform(0, w, count), rng.uniform(line, h, count)
    lean, long = rng.uniform(-0.5, 0.5, count), rng.uniform(0.5, 1.4, count)
    tone = rng.uniform(-0.10, 0.10, count)
    for i in np.argsort(ys):
        size = (2 + 10 * (ys[i] - line) / max(h - line, 1)) * long[i]
        tip = (int(xs[i] + lean[i] * size), int(ys[i] - size))
        colour = _opaque(np.array(palette.stroke) + tone[i])
        cv2.line(layer, (int(xs[i]), int(ys[i])), tip, colour, 1, cv2.LINE_AA)


def _draw_clutter(layer: np.ndarray, line: int, rng: np.random.Generator) -> None:
    """Stones, bushes and posts, which a detector has to tell apart from objects."""
    h, w = layer.shape[:2]
    for _ in range(int(rng.integers(3, 10))):
        x, y = rng.uniform(0, w), rng.uniform(line + 2, h)
        size = (0.03 + 0.09 * (y - line) / max(h - line, 1)) * h * rng.uniform(0.6, 1.4)
        kind, tone = rng.integers(3), rng.uniform(0.30, 0.62)
        if kind == 0:
            angles = np.linspace(np.pi, 2 * np.pi, 8)
            stone = np.stack([np.cos(angles), 0.55 * np.sin(angles)], axis=1)
            stone = np.add(stone * size * rng.uniform(0.85, 1.1, (8, 1)), (x, y))
            fill(layer, stone, (tone, tone * 0.97, tone * 0.92, 1))
        elif kind == 1:
            for _ in range(14):
                at = (int(x + rng.normal(0, size / 2)), int(y - abs(rng.normal(0, size / 2))))
                green = _opaque(np.array((0.20, 0.34, 0.13)) + rng.uniform(-0.08, 0.1))
                cv2.circle(layer, at, int(size * 0.28) + 1, green, -1, cv2.LINE_AA)
        else:
            top, foot = (int(x), int(y - size * 2.2)), (int(x + max(2, size * 0.18)), int(y))
            cv2.rectangle(layer, top, foot, (tone, tone * 0.85, tone * 0.7, 1), -1)


def view(
    background: Background, width: int, height: int, pan: tuple[float, float], zoom: float
) -> np.ndarray:
    """The background as the camera sees it.

    Args:
        background: its layers.
        width, height: of the frame, in pixels.
        pan: how far the camera has moved right and down, in pixels of the frame.
        zoom: factor about the middle of the frame.

    Returns:
        (H * SS, W * SS, 3) float32 RGB.
    """
    w, h = width * SS, height * SS
    picture: np.ndarray | None = None
    for layer, follow in zip(background.layers, background.parallax, strict=True):
        x = _MARGIN * w + pan[0] * SS * follow
        y = pan[1] * SS * (0.4 + 0.6 * follow)
        matrix = np.array(
            [
                [1 / zoom, 0, x + w / 2 * (1 - 1 / zoom)],
                [0, 1 / zoom, y + h / 2 * (1 - 1 / zoom)],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpAffine(layer, matrix, (w, h), flags=flags, borderMode=cv2.BORDER_REFLECT)
        if picture is None:  # the sky is opaque
            picture = seen[..., :3].copy()
        else:
            picture += (seen[..., :3] - picture) * seen[..., 3:]
    assert picture is not None
    return picture
