"""What tells look-alikes apart: the markings of each class, and the colours of an individual.

A pair shares the distribution of its mean colour, and the figure without markings looks the same
for both. Markings are a change around that mean: where they are hidden (``visibility`` 0), no
pixel knows the class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: class name -> (WordNet id, figure, twin)
CLASSES: dict[str, tuple[str, str, str]] = {
    "horse": ("n02374451", "equine", "zebra"),
    "zebra": ("n02391049", "equine", "horse"),
    "lion": ("n02129165", "felid", "tiger"),
    "tiger": ("n02129604", "felid", "lion"),
    "bear": ("n02131653", "ursid", "giant_panda"),
    "giant_panda": ("n02510455", "ursid", "bear"),
    "car": ("n02958343", "vehicle", "bus"),
    "bus": ("n02924116", "vehicle", "car"),
}


@dataclass(frozen=True)
class Look:
    """The colours of an individual, constant over its video. Colours are RGB in 0..1."""

    name: str  # class
    mean: tuple[float, float, float]
    accent: tuple[float, float, float]  # livery of a bus, paint of details
    phase: float
    frequency: float  # factor on the number of stripes
    wobble: float


def draw_look(name: str, rng: np.random.Generator) -> Look:
    """An individual of class ``name``; the same draws for both classes of a pair."""
    kind = CLASSES[name][1]
    light = rng.uniform(0.0, 1.0)
    tint = rng.uniform(-0.03, 0.03, 3)
    if kind == "equine":
        mean = np.array([0.47, 0.38, 0.30]) * (1 - light) + np.array([0.60, 0.57, 0.54]) * light
    elif kind == "felid":
        mean = np.array([0.66, 0.42, 0.20]) * (1 - light) + np.array([0.72, 0.56, 0.36]) * light
    elif kind == "ursid":
        mean = np.array([0.36, 0.26, 0.18]) * (1 - light) + np.array([0.52, 0.46, 0.40]) * light
    else:
        paints = [
            (0.75, 0.15, 0.13),
            (0.16, 0.30, 0.66),
            (0.85, 0.72, 0.16),
            (0.80, 0.80, 0.78),
            (0.20, 0.52, 0.30),
            (0.45, 0.46, 0.50),
            (0.85, 0.45, 0.12),
        ]
        mean = np.array(paints[int(rng.integers(len(paints)))]) * (0.85 + 0.2 * light)
    accents = [(0.95, 0.95, 0.92), (0.12, 0.13, 0.22), (0.95, 0.80, 0.20), (0.70, 0.10, 0.15)]
    order = rng.permutation(len(accents))
    mean = np.clip(mean + tint, 0.03, 0.95)
    # The livery must stand out from the paint.
    accent = max((accents[i] for i in order[:2]), key=lambda c: float(np.abs(c - mean).sum()))
    return Look(
        name,
        (float(mean[0]), float(mean[1]), float(mean[2])),
        accent,
        float(rng.uniform(0, 2 * np.pi)),
        float(rng.uniform(0.88, 1.15)),
        float(rng.uniform(0.5, 1.3)),
    )


def _step(x: np.ndarray, softness: float = 0.25) -> np.ndarray:
    """0 below zero, 1 above, with a soft edge."""
    return np.clip(x / softness + 0.5, 0.0, 1.0)


def _box(u: np.ndarray, v: np.ndarray, u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
    inside = np.minimum(np.minimum(u - u0, u1 - u), np.minimum(v - v0, v1 - v))
    return _step(inside, 0.012)


def _mix(a: np.ndarray, b: np.ndarray | tuple[float, float, float], t: np.ndarray) -> np.ndarray:
    return a + (np.asarray(b) - a) * t[..., None]


_DARK = np.array([0.07, 0.06, 0.06])
_GLASS = np.array([0.16, 0.21, 0.27])
_BRIGHT_GLASS = np.array([0.62, 0.78, 0.88])


def _shared(part: str, u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    """The figure without markings: alike for both classes of a pair."""
    mean = np.array(look.mean)
    colour = np.broadcast_to(mean, (*u.shape, 3)).copy()
    if part in ("eye", "nose"):
        return colour * 0 + _DARK
    if part == "foot" and CLASSES[look.name][1] == "equine":
        return colour * 0.5
    if part in ("mane", "tail", "ruff", "tuft"):
        return colour * 0.85
    if part in ("wheel", "arch"):
        return colour * 0 + 0.09
    if part == "hub":
        return colour * 0 + 0.55
    if part == "body":
        colour = _mix(colour, mean * 0.55, _step(0.125 - v, 0.02))
        return _mix(
            colour,
            0.35 * mean + 0.65 * _GLASS,
            _box(u, v, -0.45, 0.27, 0.31, 0.455) * _step(0.285 - u - (v - 0.31) * 0.72, 0.02),
        )
    return colour


def _stripes(
    coordinate: np.ndarray, across: np.ndarray, look: Look, count: float, bias: float
) -> np.ndarray:
    """Wavy stripes: 1 on a dark stripe. ``bias`` 0 gives half dark, negative fewer."""
    bend = look.wobble * 0.55 * np.sin(5.0 * across + 1.7 * look.phase)
    bend = bend + 0.25 * np.sin(13.0 * across + look.phase)
    wave = np.sin(2 * np.pi * count * look.frequency * coordinate + look.phase + bend)
    return _step(wave + bias, 0.5)


Array = np.ndarray

# Each of the following paints a part with the markings of one class in full. ``plain`` is the
# part without them, (H, W, 3); u, v are the part's own coordinates, (H, W).


def _zebra(part: str, u: Array, v: Array, look: Look, plain: Array) -> Array:
    mean = np.array(look.mean)
    light, dark = np.clip(mean * 1.1 + 0.38, 0, 0.97), mean * 0.18
    if part in ("front_leg", "rear_leg"):
        stripes = _stripes(v, u, look, 5.5, 0.0)
    elif part in ("neck", "mane"):
        stripes = _stripes(u, v, look, 7.5, 0.0)
    elif part == "head":
        stripes = np.maximum(_stripes(u, v, look, 9.0, 0.0), _step(u - 0.25, 0.05))
    elif part == "torso":
        lean = np.clip(-u - 0.1, 0, None) * (v - 0.6) * 3.0  # hind stripes lie down
        stripes = _stripes(u + lean, v, look, 7.5, 0.0)
    else:
        stripes = np.full(u.shape, 0.85)
    return _mix(np.broadcast_to(light, plain.shape), dark, stripes)


def _horse(part: str, u: Array, v: Array, look: Look, plain: Array) -> Array:
    white = (0.93, 0.91, 0.87)
    if part in ("mane", "tail"):
        return np.broadcast_to(np.array(look.mean) * 0.22, plain.shape)
    if part in ("front_leg", "rear_leg"):
        return _mix(plain, white, _step(v - 0.66, 0.06))
    if part == "head":
        return _mix(plain, white, _step(v - 0.02, 0.03) * _step(u - 0.06, 0.05))
    return plain * 1.08 if part == "torso" else plain


def _tiger(part: str, u: Array, v: Array, look: Look, plain: Array) -> Array:
    mean = np.array(look.mean)
    dark, white = mean * 0.10, (0.95, 0.92, 0.86)
    base = np.broadcast_to(np.clip(mean * 1.22 + 0.04, 0, 0.97), plain.shape)
    if part == "torso":
        base = _mix(base, white, _step(0.335 - v, 0.06))
        stripes = _stripes(u, v, look, 8.0, -0.25) * (0.35 + 0.65 * _step(v - 0.34, 0.1))
    elif part in ("front_leg", "rear_leg"):
        stripes = _stripes(v, u, look, 4.0, -0.35)
    elif part == "tail":
        stripes = _stripes(u, v, look, 9.0, 0.0)
    elif part == "ruff":
        base = _mix(base, white, _step(-v - 0.02, 0.06))
        angle, radius = np.arctan2(v + 0.03, u + 0.06), np.hypot(u + 0.06, v + 0.03)
        stripes = _stripes(angle / 6.28, radius, look, 9.0, -0.2) * _step(radius - 0.11, 0.03)
    elif part == "head":
        base = _mix(base, white, _step(-v - 0.015, 0.04))
        stripes = _stripes(v, u, look, 11.0, -0.2) * _step(0.06 - u, 0.04) * _step(v - 0.02, 0.03)
    else:
        stripes = np.full(u.shape, float(part == "tuft"))
    return _mix(base, dark, stripes)


def _lion(part: str, u: Array, v: Array, look: Look, plain: Array) -> Array:
    mean = np.array(look.mean)
    if part == "ruff":
        rays = np.sin(26 * np.arctan2(v + 0.03, u + 0.06) + look.phase) * 0.03
        return mean * (0.42, 0.36, 0.33) + rays[..., None]
    if part == "tuft":
        return np.broadcast_to(mean * 0.25, plain.shape)
    if part == "torso":
        return _mix(plain * 1.06, np.clip(mean * 1.35, 0, 1), _step(0.33 - v, 0.06))
    if part == "head":
        muzzle = _step(-v - 0.01, 0.04) * _step(u - 0.07, 0.04)
        return _mix(plain * 1.08, (0.93, 0.86, 0.74), muzzle)
    return plain * 1.06


def _panda(part: str, u: Array, v: Array, look: Look, plain: Array) -> Array:
    if part in ("front_leg", "rear_leg", "foot", "ear"):
        black = np.ones(u.shape)
    elif part == "torso":  # a band over the shoulders
        black = _step(u - 0.10 - 0.10 * (v - 0.45), 0.03) * _step(0.42 - u, 0.03)
    elif part == "neck":
        black = _step(0.12 - u, 0.04)
    elif part == "head":  # round the eye
        black = _step(0.052 - np.hypot(0.85 * (u - 0.075), v - 0.035), 0.02)
    else:
        black = np.zeros(u.shape)
    light = np.clip(np.array(look.mean) * 0.25 + 0.72, 0, 0.97)
    return _mix(np.broadcast_to(light, plain.shape), (0.08, 0.075, 0.08), black)


def _bear(part: str, u: Array, v: Array, look: Look, plain: Array) -> Array:
    mean = np.array(look.mean)
    if part == "head":
        tan = np.clip(mean * 0.6 + (0.38, 0.30, 0.20), 0, 0.95)
        return _mix(plain, tan, _step(u - 0.10, 0.03))
    if part in ("front_leg", "rear_leg"):
        return _mix(plain, mean * 0.7, _step(v - 0.3, 0.2))
    if part == "torso":
        return _mix(plain, np.clip(mean * 1.18, 0, 1), _step(v - 0.54, 0.12))
    return plain * {"foot": 0.6, "ear": 0.8}.get(part, 1.0)


def _bus(part: str, u: Array, v: Array, look: Look, plain: Array) -> Array:
    if part == "hub":
        return np.broadcast_to(np.array(look.accent) * 0.9, plain.shape)
    mean = np.array(look.mean)
    colour = np.broadcast_to(mean, plain.shape)
    colour = _mix(colour, mean * 0.55, _step(0.125 - v, 0.02))
    # A row of windows, a livery of two bands below it, a sign above.
    colour = _mix(colour, look.accent, _box(u, v, -0.6, 0.6, 0.195, 0.265))
    colour = _mix(colour, look.accent, _box(u, v, -0.6, 0.6, 0.145, 0.165))
    for i in range(6):
        u0 = -0.465 + 0.116 * i
        colour = _mix(colour, _BRIGHT_GLASS, _box(u, v, u0, u0 + 0.082, 0.325, 0.445))
    return _mix(colour, (0.98, 0.86, 0.35), _box(u, v, -0.46, 0.20, 0.468, 0.492))


def _car(part: str, u: Array, v: Array, look: Look, plain: Array) -> Array:
    if part == "hub":
        return np.full_like(plain, 0.78)
    mean = np.array(look.mean)
    colour = np.broadcast_to(mean, plain.shape)
    colour = _mix(colour, mean * 0.45, _step(0.125 - v, 0.02))
    # Two large windows with a glint, a door with its handle, lamps.
    windscreen = _step(0.285 - u - (v - 0.31) * 0.72, 0.02)
    for u0, u1 in ((-0.44, -0.11), (-0.075, 0.30)):
        colour = _mix(colour, _GLASS, _box(u, v, u0, u1, 0.31, 0.465) * windscreen)
    colour = _mix(colour, _GLASS + 0.25, _box(u - (v - 0.38), v, -0.40, -0.34, 0.32, 0.455))
    for u0 in (-0.10, 0.17):
        colour = _mix(colour, mean * 0.4, _box(u, v, u0, u0 + 0.014, 0.13, 0.31))
    colour = _mix(colour, mean * 0.3, _box(u, v, -0.07, -0.01, 0.265, 0.285))
    colour = _mix(colour, (1.0, 0.97, 0.75), _box(u, v, 0.455, 0.53, 0.20, 0.255))
    return _mix(colour, (0.85, 0.12, 0.10), _box(u, v, -0.53, -0.475, 0.24, 0.31))


_MARKINGS: dict[str, Callable[[str, Array, Array, Look, Array], Array]] = {
    "horse": _horse,
    "zebra": _zebra,
    "lion": _lion,
    "tiger": _tiger,
    "bear": _bear,
    "giant_panda": _panda,
    "car": _car,
    "bus": _bus,
}
_UNMARKED = ("eye", "nose", "wheel", "arch")


def paint(part: str, u: np.ndarray, v: np.ndarray, look: Look, visibility: float) -> np.ndarray:
    """Colours of a part.

    Args:
        part: the part's name.
        u, v: the part's own coordinates, (H, W).
        look: the individual.
        visibility: 1 shows the markings, 0 hides them.

    Returns:
        (H, W, 3) RGB, 0..1.
    """
    plain = _shared(part, u, v, look)
    if visibility <= 0 or part in _UNMARKED:
        return plain
    marked = _MARKINGS[look.name](part, u, v, look, plain)
    return plain + (marked - plain) * visibility
