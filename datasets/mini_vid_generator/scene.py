"""Drawing a frame: figures before a background.

Pictures are float32 RGB in 0..1, drawn at ``SS`` times the size of the frame and averaged down.
"""

from __future__ import annotations

import cv2
import numpy as np

from .background import SS, Background, fill, view
from .coats import CLASSES, Look, paint
from .hiding import SHADE, blur, cover, hide_frame
from .plan import OCCLUDERS, Track, VideoPlan
from .shapes import Build, Placement, Pose, figure, place


def draw_figure(
    canvas: np.ndarray,
    kind: str,
    build: Build,
    pose: Pose,
    placement: Placement,
    look: Look,
    visibility: float,
    alpha: np.ndarray | None = None,
) -> None:
    """Draw a figure.

    Args:
        canvas: (H * SS, W * SS, 3) float32 RGB in 0..1, drawn on in place.
        kind, build, pose: see :func:`mini_vid_generator.shapes.figure`.
        placement: in pixels of the frame.
        look, visibility: see :func:`mini_vid_generator.coats.paint`.
        alpha: (H * SS, W * SS) float32, to which the figure's coverage is added.
    """
    height, width = canvas.shape[:2]
    matrix = placement.matrix() * SS
    inverse = np.linalg.inv(matrix[:, :2])
    for part in figure(kind, build, pose):
        polygon = place(part.outline, matrix)
        x0, y0 = np.floor(polygon.min(0) - 2).astype(int)
        x1, y1 = np.ceil(polygon.max(0) + 3).astype(int)
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if x0 >= x1 or y0 >= y1:
            continue
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fill(mask, polygon - (x0, y0), 255)
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
            covered = alpha[y0:y1, x0:x1]
            covered += (1 - covered) * mask


def render(plan: VideoPlan, background: Background, frame: int) -> np.ndarray:
    """Draw one frame of a plan: (H, W, 3) uint8 RGB."""
    camera, whole = plan.camera, plan.frame_degradation[frame]
    pan = (float(camera.x[frame]), float(camera.y[frame]))
    canvas = view(background, plan.width, plan.height, pan, float(camera.zoom[frame]))
    # Painter's order: who stands further down in the picture is nearer.
    for track in sorted(plan.tracks, key=lambda t: t.placements[frame].y):
        _draw_track(canvas, track, frame, plan.seed)
    noise = 0.010
    if whole is not None:
        size = max(track.width for track in plan.tracks) * SS
        canvas = hide_frame(canvas, whole.kind, size, whole.angle)
        noise = 0.020 if whole.kind == "darkness" else noise
    return _develop(canvas, noise, np.random.default_rng([*plan.seed, 7, frame]))


def _develop(canvas: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Average down to frame size and add sensor noise: uint8 RGB."""
    h, w = canvas.shape[0] // SS, canvas.shape[1] // SS
    picture = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA)
    picture = picture + noise * rng.standard_normal((h, w, 1)).astype(np.float32)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _draw_track(canvas: np.ndarray, track: Track, frame: int, seed: tuple[int, ...]) -> None:
    """An object with its shadow, and what hides it alone."""
    placement, state = track.placements[frame], track.degradations[frame]
    _draw_shadow(canvas, placement)

    def draw(target: np.ndarray, alpha: np.ndarray | None = None) -> None:
        kind, visibility = CLASSES[track.look.name][1], 1.0 if state is None else 0.0
        pose = track.poses[frame]
        draw_figure(target, kind, track.build, pose, placement, track.look, visibility, alpha)

    own = None if state is None or state.whole else state.kind
    if own in ("motion_blur", "defocus", "shade"):
        # Drawn on black, the colours come out multiplied by the coverage.
        layer, alpha = np.zeros_like(canvas), np.zeros(canvas.shape[:2], np.float32)
        draw(layer, alpha)
        layer = np.dstack([layer * SHADE if own == "shade" else layer, alpha])
        if own != "shade":
            assert state is not None
            layer = blur(layer, own, track.width * SS, state.angle)
        canvas *= 1 - layer[..., 3:]
        canvas += layer[..., :3]
        return
    draw(canvas)
    if state is not None and own in OCCLUDERS:
        x0, y0, x1, y1 = (SS * value for value in track.extent(frame))
        # The same plants all through a run, drifting past the camera.
        plants = np.random.default_rng([*seed, 8, state.run])
        cover(canvas, state.kind, (x0, y0, x1, y1), 0.06 * state.age * (x1 - x0), plants)


def _draw_shadow(canvas: np.ndarray, placement: Placement) -> None:
    """A dark spot on the ground."""
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
