"""Drawing: backgrounds with parallax, figures, and what hides their markings.

Pictures are float32 RGB in 0..1, drawn at ``SS`` times the size of the frame and averaged down.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .coats import CLASSES, Look, paint
from .plan import OCCLUDERS, Degradation, Track, VideoPlan
from .shapes import Build, Placement, Pose, figure, place

SS = 2  # supersampling
_SHIFT = 4  # fractional bits of OpenCV's polygon coordinates
_MARGIN = 0.75  # a background reaches this many frame widths beyond each side


def _fill(canvas: np.ndarray, polygon: np.ndarray, value: tuple[float, ...] | float) -> None:
    """Fill a polygon given in the canvas' pixels (pixel i covers [i, i + 1))."""
    points = np.round((polygon - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [points], value, cv2.LINE_AA, _SHIFT)


def draw_figure(
    canvas: np.ndarray,
    kind: str,
    build: Build,
    pose: Pose,
    placement: Placement,
    look: Look,
    visibility: float,
    ss: int = SS,
    alpha: np.ndarray | None = None,
) -> None:
    """Draw a figure into ``canvas`` (H * ss, W * ss, 3), and its coverage into ``alpha``."""
    height, width = canvas.shape[:2]
    matrix = placement.matrix() * ss
    inverse = np.linalg.inv(matrix[:, :2])
    for part in figure(kind, build, pose):
        polygon = place(part.outline, matrix)
        x0, y0 = np.floor(polygon.min(0) - 2).astype(int)
        x1, y1 = np.ceil(polygon.max(0) + 3).astype(int)
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if x0 >= x1 or y0 >= y1:
            continue
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        _fill(mask, polygon - (x0, y0), 255)
        mask = mask.astype(np.float32) / 255
        px = np.arange(x0, x1)[None, :] + 0.5 - matrix[0, 2]
        py = np.arange(y0, y1)[:, None] + 0.5 - matrix[1, 2]
        x = inverse[0, 0] * px + inverse[0, 1] * py - part.origin[0]
        y = inverse[1, 0] * px + inverse[1, 1] * py - part.origin[1]
        (a, b), (c, d) = part.axes
        colour = paint(part.name, a * x + b * y, c * x + d * y, look, visibility)
        # Light from above: the part's upper side is lighter than its lower one.
        top, bottom = polygon[:, 1].min(), polygon[:, 1].max()
        light = 1.10 - 0.30 * (py + matrix[1, 2] - top) / max(bottom - top, 1.0)
        colour = np.clip(colour * (part.shade * light)[..., None], 0, 1)
        region = canvas[y0:y1, x0:x1]
        region += (colour - region) * mask[..., None]
        if alpha is not None:
            cover = alpha[y0:y1, x0:x1]
            cover += (1 - cover) * mask


# --- backgrounds ---------------------------------------------------------------------------------


@dataclass
class Background:
    """Layers from far to near, each (H, W', 4) RGBA, and how much of the pan each follows."""

    layers: list[np.ndarray]
    parallax: list[float]


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise of about unit amplitude, (height, width)."""
    grid = rng.standard_normal((int(height / cell) + 3, int(width / cell) + 3)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


_GROUNDS: dict[str, tuple[tuple[float, float, float], ...]] = {
    # ground, its strokes, far layer, sky at the top, sky at the horizon
    "meadow": ((0.36, 0.50, 0.22), (0.24, 0.38, 0.14), (0.22, 0.36, 0.20), (0.42, 0.62, 0.88),
               (0.80, 0.88, 0.94)),
    "savanna": ((0.66, 0.57, 0.33), (0.50, 0.42, 0.20), (0.45, 0.46, 0.26), (0.50, 0.66, 0.86),
                (0.93, 0.88, 0.76)),
    "snow": ((0.84, 0.87, 0.91), (0.72, 0.77, 0.84), (0.40, 0.48, 0.52), (0.60, 0.68, 0.78),
             (0.86, 0.88, 0.90)),
    "shore": ((0.76, 0.69, 0.53), (0.64, 0.56, 0.40), (0.28, 0.48, 0.60), (0.44, 0.66, 0.90),
              (0.82, 0.90, 0.95)),
    "forest": ((0.34, 0.34, 0.20), (0.22, 0.28, 0.12), (0.13, 0.22, 0.12), (0.40, 0.52, 0.45),
               (0.56, 0.66, 0.55)),
    "street": ((0.47, 0.47, 0.48), (0.40, 0.40, 0.41), (0.55, 0.48, 0.44), (0.55, 0.68, 0.85),
               (0.86, 0.88, 0.90)),
    "highway": ((0.42, 0.43, 0.44), (0.36, 0.37, 0.38), (0.32, 0.44, 0.26), (0.46, 0.64, 0.88),
                (0.84, 0.88, 0.90)),
}
GROUNDS = tuple(_GROUNDS)


def make_background(
    kind: str, width: int, height: int, horizon: float, rng: np.random.Generator
) -> Background:
    """Sky, far layer and ground for frames of ``width`` x ``height``; horizon in 0..1 from top."""
    ground, stroke, far, top, low = (
        np.clip(np.array(c) + rng.uniform(-0.05, 0.05) + rng.uniform(-0.02, 0.02, 3), 0, 1)
        for c in _GROUNDS[kind]
    )
    h, w = height * SS, int(width * SS * (1 + 2 * _MARGIN))
    line = int(horizon * h)
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    sky = (top + (low - top) * np.clip(y / max(horizon, 0.05), 0, 1)).astype(np.float32)
    sky = np.repeat(sky, w, axis=1)
    cloud = np.clip(_noise(rng, h, w, h * 0.22) * 0.6 + _noise(rng, h, w, h * 0.08) * 0.3, 0, 1)
    sky += (1 - sky) * (cloud * 0.6)[..., None]
    layers = [np.dstack([sky, np.ones((h, w), np.float32)])]

    hills = np.zeros((h, w, 4), np.float32)
    if kind == "street":
        x = 0.0
        while x < w:
            bw, bh = rng.uniform(0.16, 0.4) * h, rng.uniform(0.5, 1.1) * line
            colour = np.clip(far + rng.uniform(-0.18, 0.18), 0, 1)
            x0, x1, y0 = int(x), int(x + bw), int(line - bh)
            hills[max(y0, 0) : line + 4, x0:x1] = (*colour, 1)
            glass = np.clip(colour * 0.55, 0, 1)
            for wy in range(max(y0, 0) + 6, line - 6, 16):
                for wx in range(x0 + 5, min(x1, w) - 8, 14):
                    hills[wy : wy + 8, wx : wx + 7, :3] = glass
            x += bw + rng.uniform(0, 0.05) * h
    elif kind == "shore":
        hills[int(line * 0.72) : line + 8] = (*far, 1)
        for _ in range(70):
            wx, wy = rng.uniform(0, w), rng.uniform(line * 0.74, line + 6)
            glint = (*np.clip(far + 0.16, 0, 1), 1)
            cv2.line(hills, (int(wx), int(wy)), (int(wx + rng.uniform(10, 40)), int(wy)), glint, 1)
    else:
        ridge = line - h * (0.07 + 0.05 * _noise(rng, 1, w, h * 0.5)[0])
        outline = np.stack([np.arange(0, w, 4), ridge[::4]], 1)
        outline = np.concatenate([outline, [(w, line + 6), (0, line + 6)]])
        _fill(hills, outline, (*np.clip(far * 0.6 + low * 0.4, 0, 1), 1))
        for _ in range(int(rng.integers(10, 40 if kind != "forest" else 90))):
            tx, size = rng.uniform(0, w), rng.uniform(0.05, 0.16) * h
            colour = (*np.clip(far + rng.uniform(-0.06, 0.06), 0, 1), 1)
            if kind == "snow" or rng.random() < 0.3:
                tree = np.array([(tx - size * 0.5, line + 4), (tx, line - 2 * size),
                                 (tx + size * 0.5, line + 4)])
                _fill(hills, tree, colour)
            else:
                cv2.ellipse(hills, (int(tx), int(line - size * 0.6)), (int(size), int(size * 0.8)),
                            0, 0, 360, colour, -1, cv2.LINE_AA)
    layers.append(hills)

    field = np.zeros((h, w, 4), np.float32)
    texture = 0.05 * _noise(rng, h, w, 40) + 0.035 * _noise(rng, h, w, 9)
    texture += 0.02 * rng.standard_normal((h, w)).astype(np.float32)
    field[..., :3] = np.clip(ground.astype(np.float32) + texture[..., None], 0, 1)
    depth = np.clip((y[:, 0, 0] - horizon) / (1 - horizon), 0, 1)
    field[..., :3] *= (0.86 + 0.18 * depth)[:, None, None]
    if kind in ("street", "highway"):
        kerb = line + int(0.10 * (h - line))
        verge = (0.60, 0.58, 0.55) if kind == "street" else tuple(far * 1.2)
        field[line:kerb, :, :3] = np.array(verge) + texture[line:kerb, :, None]
        middle = line + int(0.5 * (h - line))
        for x0 in range(int(rng.integers(0, 40)), w, 96):
            field[middle : middle + 5, x0 : x0 + 48, :3] = (0.88, 0.86, 0.80)
    else:
        count = int(w * (h - line) / 260)
        xs, ys = rng.uniform(0, w, count), rng.uniform(line, h, count)
        lean, long = rng.uniform(-0.5, 0.5, count), rng.uniform(0.5, 1.4, count)
        tone = rng.uniform(-0.10, 0.10, count)
        for i in np.argsort(ys):
            size = (2 + 10 * (ys[i] - line) / max(h - line, 1)) * long[i]
            colour = (*np.clip(stroke + tone[i], 0, 1), 1)
            cv2.line(field, (int(xs[i]), int(ys[i])),
                     (int(xs[i] + lean[i] * size), int(ys[i] - size)), colour, 1, cv2.LINE_AA)
    for _ in range(int(rng.integers(3, 10))):  # stones, bushes and posts to tell apart from objects
        ox, oy = rng.uniform(0, w), rng.uniform(line + 2, h)
        size = (0.03 + 0.09 * (oy - line) / max(h - line, 1)) * h * rng.uniform(0.6, 1.4)
        kind_of = rng.integers(3)
        if kind_of == 0:
            tone = rng.uniform(0.35, 0.65)
            rock = np.array([(np.cos(t) * size * rng.uniform(0.8, 1.1), np.sin(t) * size * 0.55)
                             for t in np.linspace(np.pi, 2 * np.pi, 8)]) + (ox, oy)
            _fill(field, rock, (tone, tone * 0.97, tone * 0.92, 1))
        elif kind_of == 1:
            for _ in range(14):
                bx, by = rng.normal(0, size * 0.5), -abs(rng.normal(0, size * 0.5))
                colour = (*np.clip(np.array([0.20, 0.34, 0.13]) + rng.uniform(-0.08, 0.1), 0, 1), 1)
                cv2.circle(field, (int(ox + bx), int(oy + by)), int(size * 0.28) + 1, colour, -1,
                           cv2.LINE_AA)
        else:
            tone = rng.uniform(0.25, 0.6)
            x0, y0 = int(ox), int(oy - size * 2.2)
            cv2.rectangle(field, (x0, max(y0, 0)), (x0 + max(2, int(size * 0.18)), int(oy)),
                          (tone, tone * 0.85, tone * 0.7, 1), -1)
    row = np.arange(h)[:, None]
    edge = line + 3 * _noise(rng, 1, w, 30)[0][None, :] * (kind not in ("street", "highway"))
    field[..., 3] = np.maximum(field[..., 3] * 0, np.clip(row - edge, 0, 1))
    layers.append(field)
    return Background(layers, [0.15, 0.45, 1.0])


def view(
    background: Background, width: int, height: int, pan: tuple[float, float], zoom: float
) -> np.ndarray:
    """The background as the camera sees it: (H * SS, W * SS, 3). ``pan`` in frame pixels."""
    w, h = width * SS, height * SS
    picture = np.zeros((0, 0, 3), np.float32)
    for layer, follow in zip(background.layers, background.parallax, strict=True):
        x = _MARGIN * w + pan[0] * SS * follow
        y = pan[1] * SS * (0.4 + 0.6 * follow)
        # Zoom about the middle of the frame.
        matrix = np.array([[1 / zoom, 0, x + w / 2 * (1 - 1 / zoom)],
                           [0, 1 / zoom, y + h / 2 * (1 - 1 / zoom)]])
        seen = cv2.warpAffine(layer, matrix, (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                              borderMode=cv2.BORDER_REFLECT)
        if picture.size == 0:  # the sky is opaque
            picture = seen[..., :3].copy()
        else:
            seen[..., :3] -= picture
            seen[..., :3] *= seen[..., 3:]
            picture += seen[..., :3]
    return picture


# --- what hides the markings ----------------------------------------------------------------------


def motion_kernel(length: float, angle: float) -> np.ndarray:
    """A straight blur of ``length`` pixels at ``angle`` radians; its weights sum to 1."""
    size = int(np.ceil(length)) | 1
    kernel = np.zeros((size, size), np.float32)
    centre = (size - 1) / 2
    dx, dy = np.cos(angle) * (size - 1) / 2, np.sin(angle) * (size - 1) / 2
    scale = 1 << _SHIFT
    start = (round((centre - dx) * scale), round((centre - dy) * scale))
    end = (round((centre + dx) * scale), round((centre + dy) * scale))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA, _SHIFT)
    return kernel / kernel.sum()


def _blur(picture: np.ndarray, kind: str, size: float, angle: float) -> np.ndarray:
    """Motion blur or defocus of an object ``size`` canvas pixels wide."""
    if kind == "motion_blur":
        kernel = motion_kernel(np.clip(0.24 * size, 12, 40), angle)
        return cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    sigma = float(np.clip(0.045 * size, 3.0, 8.0))
    return cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _foliage(
    canvas: np.ndarray, box: tuple[float, float, float, float], look: str,
    drift: float, rng: np.random.Generator
) -> None:
    """Tall grass, leaves or a fence between camera and object; ``box`` in canvas pixels."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    base = np.array({"grass": (0.30, 0.40, 0.14), "leaves": (0.16, 0.32, 0.12),
                     "fence": (0.50, 0.38, 0.26)}[look]) + rng.uniform(-0.06, 0.06, 3)
    if look == "grass":
        count = int(np.clip(w / 3.4, 20, 80))
        foot, lean = rng.uniform(-0.10, 1.10, count), rng.uniform(-0.18, 0.18, count)
        high, tone = rng.uniform(0.55, 1.0, count), rng.uniform(-0.13, 0.13, count)
        for f, bend, tall, t in zip(foot, lean, high, tone, strict=True):
            fx, fy, top = x0 + (f * w + drift), y1 + 0.06 * h, y1 - tall * h * 0.95
            blade = np.array([(fx - 0.016 * w - 2, fy), (fx + bend * h * 0.5, (fy + top) / 2),
                              (fx + bend * h, top), (fx + 0.016 * w + 2, fy)])
            _fill(canvas, blade, tuple(np.clip(base + t, 0, 1).tolist()))
    elif look == "leaves":
        count = 62
        centres = rng.uniform((-0.05, 0.16), (1.05, 1.06), (count, 2))
        tone, turn = rng.uniform(-0.10, 0.16, count), rng.uniform(0, 180, count)
        for (u, v), t, angle in zip(centres, tone, turn, strict=True):
            centre = (int(x0 + u * w + drift), int(y0 + v * h))
            axes = (max(3, int(0.085 * w)), max(2, int(0.045 * w)))
            cv2.ellipse(canvas, centre, axes, float(angle), 0, 360,
                        tuple(np.clip(base + t, 0, 1).tolist()), -1, cv2.LINE_AA)
    else:
        boards = 9
        gap = w * 1.2 / boards
        offset = drift % gap
        tone = rng.uniform(-0.05, 0.05, boards + 1)
        for i in range(boards + 1):
            bx = x0 - 0.15 * w + i * gap + offset
            board = np.array([(bx, y1 + 0.05 * h), (bx, y0 + 0.34 * h),
                              (bx + gap * 0.3, y0 + 0.24 * h), (bx + gap * 0.6, y0 + 0.34 * h),
                              (bx + gap * 0.6, y1 + 0.05 * h)])
            _fill(canvas, board, tuple(np.clip(base + tone[i], 0, 1).tolist()))
        for level in (0.45, 0.80):
            rail = np.array([(x0 - 0.15 * w, y0 + level * h), (x1 + 0.15 * w, y0 + level * h),
                             (x1 + 0.15 * w, y0 + (level + 0.07) * h),
                             (x0 - 0.15 * w, y0 + (level + 0.07) * h)])
            _fill(canvas, rail, tuple(np.clip(base * 0.85, 0, 1).tolist()))


def _finish(canvas: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Average down to frame size, add sensor noise; uint8 RGB."""
    h, w = canvas.shape[0] // SS, canvas.shape[1] // SS
    picture = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA)
    picture = picture + noise * rng.standard_normal((h, w, 1)).astype(np.float32)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def render(plan: VideoPlan, background: Background, frame: int) -> np.ndarray:
    """Draw one frame of a plan: (H, W, 3) uint8 RGB."""
    rng = np.random.default_rng([*plan.seed, 7, frame])
    camera = plan.camera
    pan = (float(camera.x[frame]), float(camera.y[frame]))
    canvas = view(background, plan.width, plan.height, pan, float(camera.zoom[frame]))
    whole = plan.frame_degradation[frame]
    # Painter's order: who stands further down in the picture is nearer.
    for track in sorted(plan.tracks, key=lambda t: float(t.placements[frame].y)):
        state = track.degradations[frame]
        _draw_track(canvas, track, frame, state, plan.seed)
    if whole is not None:
        size = max((t.width for t in plan.tracks), default=60.0) * SS
        if whole.kind in ("motion_blur", "defocus"):
            canvas = _blur(canvas, whole.kind, size, whole.angle)
        elif whole.kind == "fog":
            canvas = cv2.GaussianBlur(canvas, (0, 0), 2.5)
            canvas = canvas * 0.45 + np.array((0.74, 0.76, 0.78), np.float32) * 0.55
        elif whole.kind == "darkness":
            grey = canvas.mean(2, keepdims=True)
            canvas = (0.45 * canvas + 0.55 * grey) * np.array((0.30, 0.32, 0.42), np.float32)
    noise = 0.020 if whole is not None and whole.kind == "darkness" else 0.010
    return _finish(canvas, noise, rng)


def _shadow(canvas: np.ndarray, placement: Placement) -> None:
    """A soft dark spot on the ground."""
    height, width = canvas.shape[:2]
    x, y = int(placement.x * SS), int((placement.y - 0.5) * SS)
    rx = int(0.5 * placement.scale * SS * max(abs(placement.turn), 0.3))
    ry = max(2, int(0.045 * placement.scale * SS))
    x0, x1 = max(x - rx - 2, 0), min(x + rx + 3, width)
    y0, y1 = max(y - ry - 2, 0), min(y + ry + 3, height)
    if x0 >= x1 or y0 >= y1:
        return
    dark = np.zeros((y1 - y0, x1 - x0), np.float32)
    cv2.ellipse(dark, (x - x0, y - y0), (rx, ry), 0, 0, 360, 0.35, -1, cv2.LINE_AA)
    canvas[y0:y1, x0:x1] *= 1 - dark[..., None]


def _draw_track(
    canvas: np.ndarray, track: Track, frame: int, state: Degradation | None, seed: tuple[int, ...]
) -> None:
    placement, pose = track.placements[frame], track.poses[frame]
    kind = CLASSES[track.look.name][1]
    visibility = 1.0 if state is None else 0.0
    height, width = canvas.shape[:2]
    _shadow(canvas, placement)

    if state is not None and state.kind in ("motion_blur", "defocus") and not state.whole:
        layer, alpha = np.zeros_like(canvas), np.zeros((height, width), np.float32)
        draw_figure(layer, kind, track.build, pose, placement, track.look, visibility, alpha=alpha)
        both = _blur(np.dstack([layer * alpha[..., None], alpha]), state.kind,
                     track.width * SS, state.angle)
        canvas *= 1 - both[..., 3:]
        canvas += both[..., :3]
        return
    if state is not None and state.kind == "shade":
        layer, alpha = np.zeros_like(canvas), np.zeros((height, width), np.float32)
        draw_figure(layer, kind, track.build, pose, placement, track.look, visibility, alpha=alpha)
        dark = layer * np.array((0.20, 0.20, 0.24), np.float32)
        canvas += (dark - canvas) * alpha[..., None]
        return
    draw_figure(canvas, kind, track.build, pose, placement, track.look, visibility)
    if state is not None and state.kind in OCCLUDERS:
        box = track.extent(frame)
        if box is not None:
            x0, y0, x1, y1 = (value * SS for value in box)
            # The same plants all through a run, drifting past the camera.
            plants = np.random.default_rng([*seed, 8, state.run])
            drift = state.drift * (x1 - x0) * 0.06
            _foliage(canvas, (x0, y0, x1, y1), state.kind, drift, plants)
