"""Outlines of the four figures (equine, felid, ursid, vehicle), posed and placed.

A figure is a list of parts, each a closed polygon. Local units: the figure is about 1 long, x
points forward (to the right), y up, and the ground is y = 0. Both members of a look-alike pair
are drawn from one figure, so nothing here may know the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Points = np.ndarray  # (N, 2) float64


@dataclass(frozen=True)
class Build:
    """Proportions of an individual, as factors of the figure's own (1 = as drawn)."""

    length: float = 1.0
    height: float = 1.0
    head: float = 1.0
    limb: float = 1.0


@dataclass(frozen=True)
class Pose:
    """What changes from frame to frame. Angles in radians, lengths in local units."""

    phase: float = 0.0  # of the walk cycle, or of the wheels
    stride: float = 0.0  # half the swing of a leg
    head: float = 0.0  # nod, up is positive
    tail: float = 0.0  # swing
    stretch: float = 0.0  # gallop: longer and lower if positive
    lift: float = 0.0  # height above the ground


@dataclass(frozen=True)
class Placement:
    """Where a figure stands in the picture, in pixels (a pixel i covers [i, i + 1))."""

    x: float  # of the point on the ground under the figure's middle
    y: float
    scale: float  # pixels a local unit
    turn: float = 1.0  # horizontal squash: 1 faces right, -1 left, between: turning
    pitch: float = 0.0  # radians, nose up is positive

    def matrix(self) -> np.ndarray:
        """The 2x3 map from local units to pixels."""
        c, s = np.cos(self.pitch), np.sin(self.pitch)
        flip = self.scale * self.turn
        return np.array(
            [
                [flip * c, -flip * s, self.x],
                [-self.scale * s, -self.scale * c, self.y],
            ]
        )


@dataclass(frozen=True)
class Part:
    """One closed polygon of a figure.

    ``origin`` and ``axes`` give the part's own coordinates (u, v), in which a coat is described:
    (u, v) = axes @ (point - origin). They move with the part, so the coat does too.
    """

    name: str
    outline: Points
    origin: tuple[float, float] = (0.0, 0.0)
    axes: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    shade: float = 1.0  # limbs on the far side are darker


def smooth(points: list[tuple[float, float]] | Points, steps: int = 5) -> Points:
    """A closed Catmull-Rom curve through ``points``, ``steps`` samples a segment."""
    p1 = np.asarray(points, dtype=np.float64)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[:, None, :] for p in (p0, p1, p2, p3))
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    return curve.reshape(-1, 2)


def ribbon(spine: list[tuple[float, float]] | Points, widths: list[float]) -> Points:
    """A tapered band along ``spine``: full width ``widths[i]`` at point i, round at both ends."""
    spine = np.asarray(spine, dtype=np.float64)
    half = np.asarray(widths, dtype=np.float64)[:, None] / 2
    along = np.gradient(spine, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)

    def cap(centre: Points, forward: Points, side: Points, radius: float) -> Points:
        angle = np.linspace(np.pi / 2, -np.pi / 2, 7)[1:-1, None]
        return centre + radius * (np.sin(angle) * side + np.cos(angle) * forward)

    end = cap(spine[-1], along[-1], normal[-1], half[-1, 0])
    start = cap(spine[0], -along[0], -normal[0], half[0, 0])
    return np.concatenate([spine + half * normal, end, (spine - half * normal)[::-1], start])


def ellipse(
    x: float, y: float, rx: float, ry: float, angle: float = 0.0, points: int = 24
) -> Points:
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    flat = np.stack([rx * np.cos(t), ry * np.sin(t)], axis=1)
    return flat @ _rotation(angle).T + (x, y)


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


@dataclass(frozen=True)
class _Animal:
    """The measures of a four-legged figure, facing right."""

    torso: tuple[tuple[float, float], ...]
    neck: tuple[tuple[float, float], tuple[float, float]]
    neck_widths: tuple[float, float]
    head_at: tuple[float, float]
    head_angle: float
    head: tuple[tuple[float, float], ...]  # around head_at, nose along +x
    ear: tuple[tuple[float, float], ...]
    far_ear_shift: tuple[float, float]
    eye: tuple[float, float]
    eye_radius: float
    ruff: tuple[float, float, float, float] | None  # centre and radii, around head_at
    crest: bool  # a standing mane along the neck
    front_hip: tuple[float, float]
    rear_hip: tuple[float, float]
    leg_widths: tuple[float, float, float]  # at hip, knee, ankle
    foot: tuple[float, float]  # length, height
    hock: float  # how far the hind knee points back
    tail: tuple[tuple[float, float], ...]
    tail_widths: tuple[float, ...]
    tuft: float


EQUINE = _Animal(
    torso=(
        (0.42, 0.60),
        (0.27, 0.75),
        (0.02, 0.70),
        (-0.27, 0.745),
        (-0.43, 0.66),
        (-0.45, 0.52),
        (-0.24, 0.455),
        (0.02, 0.415),
        (0.26, 0.43),
        (0.40, 0.48),
    ),
    neck=((0.29, 0.62), (0.56, 0.95)),
    neck_widths=(0.32, 0.155),
    head_at=(0.56, 0.96),
    head_angle=-0.72,
    head=(
        (-0.07, 0.03),
        (0.00, 0.085),
        (0.10, 0.075),
        (0.22, 0.05),
        (0.31, 0.045),
        (0.345, 0.0),
        (0.31, -0.05),
        (0.20, -0.055),
        (0.10, -0.10),
        (0.00, -0.10),
        (-0.07, -0.05),
    ),
    ear=((-0.045, 0.05), (-0.075, 0.17), (0.025, 0.075)),
    far_ear_shift=(0.03, 0.0),
    eye=(0.085, 0.03),
    eye_radius=0.018,
    ruff=None,
    crest=True,
    front_hip=(0.29, 0.52),
    rear_hip=(-0.33, 0.55),
    leg_widths=(0.17, 0.085, 0.06),
    foot=(0.095, 0.06),
    hock=0.05,
    tail=((-0.43, 0.70), (-0.51, 0.62), (-0.54, 0.48), (-0.53, 0.30)),
    tail_widths=(0.05, 0.09, 0.11, 0.03),
    tuft=0.0,
)

FELID = _Animal(
    torso=(
        (0.40, 0.44),
        (0.30, 0.56),
        (0.05, 0.53),
        (-0.25, 0.56),
        (-0.44, 0.52),
        (-0.47, 0.38),
        (-0.30, 0.295),
        (-0.05, 0.27),
        (0.22, 0.25),
        (0.38, 0.30),
    ),
    neck=((0.30, 0.44), (0.50, 0.56)),
    neck_widths=(0.27, 0.22),
    head_at=(0.53, 0.575),
    head_angle=-0.12,
    head=(
        (-0.10, 0.06),
        (-0.03, 0.125),
        (0.07, 0.115),
        (0.115, 0.045),
        (0.19, 0.03),
        (0.215, -0.02),
        (0.19, -0.075),
        (0.10, -0.10),
        (0.0, -0.115),
        (-0.09, -0.07),
    ),
    ear=((-0.075, 0.09), (-0.085, 0.165), (-0.03, 0.185), (0.01, 0.12)),
    far_ear_shift=(0.085, -0.005),
    eye=(0.085, 0.03),
    eye_radius=0.018,
    ruff=(-0.06, -0.03, 0.185, 0.215),
    crest=False,
    front_hip=(0.28, 0.36),
    rear_hip=(-0.34, 0.40),
    leg_widths=(0.18, 0.105, 0.085),
    foot=(0.15, 0.065),
    hock=0.05,
    tail=((-0.43, 0.49), (-0.56, 0.42), (-0.65, 0.34), (-0.74, 0.37), (-0.80, 0.47)),
    tail_widths=(0.07, 0.055, 0.05, 0.045, 0.04),
    tuft=0.055,
)

URSID = _Animal(
    torso=(
        (0.41, 0.50),
        (0.30, 0.66),
        (0.12, 0.70),
        (-0.12, 0.655),
        (-0.34, 0.64),
        (-0.50, 0.50),
        (-0.51, 0.33),
        (-0.36, 0.22),
        (-0.05, 0.19),
        (0.25, 0.20),
        (0.40, 0.32),
    ),
    neck=((0.28, 0.49), (0.49, 0.54)),
    neck_widths=(0.36, 0.27),
    head_at=(0.52, 0.53),
    head_angle=-0.18,
    head=(
        (-0.15, 0.05),
        (-0.08, 0.15),
        (0.04, 0.16),
        (0.12, 0.075),
        (0.21, 0.045),
        (0.245, -0.015),
        (0.21, -0.08),
        (0.10, -0.115),
        (-0.03, -0.15),
        (-0.14, -0.09),
    ),
    ear=((-0.115, 0.10), (-0.135, 0.185), (-0.075, 0.225), (-0.02, 0.19), (-0.025, 0.12)),
    far_ear_shift=(0.105, -0.015),
    eye=(0.085, 0.045),
    eye_radius=0.02,
    ruff=None,
    crest=False,
    front_hip=(0.27, 0.36),
    rear_hip=(-0.34, 0.37),
    leg_widths=(0.27, 0.19, 0.165),
    foot=(0.22, 0.08),
    hock=0.02,
    tail=((-0.49, 0.49), (-0.54, 0.46), (-0.57, 0.42)),
    tail_widths=(0.10, 0.09, 0.06),
    tuft=0.0,
)


def _leg(
    animal: _Animal, hip: tuple[float, float], angle: float, bend: float, rear: bool, limb: float
) -> tuple[Points, Points, tuple[float, float], np.ndarray]:
    """Outlines of a leg and its foot, and the leg's own frame (v runs from hip 0 to foot 1)."""
    length = hip[1] * limb
    rest = -animal.hock if rear else 0.25 * animal.hock
    upper, lower = 0.52 * length, 0.50 * length
    direction = np.array([np.sin(angle), -np.cos(angle)])
    side = np.array([np.cos(angle), np.sin(angle)])
    start = np.array(hip)
    knee = start + upper * direction + rest * side
    shin = angle - bend + (0.0 if rest == 0 else -rest / lower * 0.9)
    ankle = knee + lower * np.array([np.sin(shin), -np.cos(shin)])
    # Feet neither sink into the ground nor end above it when the leg bears the body.
    ankle[1] = max(ankle[1], 0.0)
    w0, w1, w2 = (w * limb for w in animal.leg_widths)
    leg = ribbon(
        [
            start,
            start + 0.55 * (knee - start),
            knee,
            knee + 0.6 * (ankle - knee),
            np.add(ankle, (0, 0.01)),
        ],
        [w0, 0.72 * w0 + 0.28 * w1, w1, w2, w2],
    )
    leg[:, 1] = np.maximum(leg[:, 1], 0.0)
    fl, fh = animal.foot
    base = ankle[1]
    foot = smooth(
        [
            (ankle[0] - 0.45 * fl, base),
            (ankle[0] - 0.40 * fl, base + fh),
            (ankle[0] + 0.25 * fl, base + fh),
            (ankle[0] + 0.62 * fl, base + 0.4 * fh),
            (ankle[0] + 0.62 * fl, base),
        ],
        steps=3,
    )
    foot[:, 1] = np.maximum(foot[:, 1], 0.0)
    axes = np.stack([side, direction]) / length
    return leg, foot, hip, axes


def _pair(axes: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    return (tuple(map(float, axes[0])), tuple(map(float, axes[1])))  # type: ignore[return-value]


def _animal(animal: _Animal, build: Build, pose: Pose) -> list[Part]:
    body = np.array([build.length * (1 + pose.stretch), 1 - 0.5 * pose.stretch])
    parts: list[Part] = []

    def leg(front: bool, far: bool) -> None:
        hip = animal.front_hip if front else animal.rear_hip
        offset = (0.0 if front else np.pi) + (np.pi * 0.85 if far else 0.0)
        swing = np.sin(pose.phase + offset)
        raised = max(0.0, np.cos(pose.phase + offset))  # the foot comes forward off the ground
        angle = pose.stride * swing + (0.10 if far else -0.02) * (1 if front else -1)
        bend = pose.stride * 1.3 * raised * (1 if front else 0.8)
        at = (hip[0] * body[0], hip[1] * body[1])
        outline, foot, origin, axes = _leg(animal, at, angle, bend, not front, build.limb)
        shade = 0.72 if far else 1.0
        name = "front_leg" if front else "rear_leg"
        parts.append(Part(name, outline, origin, _pair(axes), shade))
        parts.append(Part("foot", foot, shade=shade))

    tail = np.array(animal.tail) * body
    if len(tail) > 1:
        # Each point of the tail swings more than the one before it.
        for i in range(1, len(tail)):
            turn = _rotation(pose.tail * i / len(tail))
            tail[i] = tail[0] + turn @ (np.array(animal.tail[i]) * body - tail[0])
    parts.append(Part("tail", ribbon(tail, list(animal.tail_widths)), tuple(tail[0])))
    if animal.tuft:
        parts.append(Part("tuft", ellipse(*tail[-1], animal.tuft, animal.tuft * 1.1)))

    leg(front=True, far=True)
    leg(front=False, far=True)

    neck0 = np.array(animal.neck[0]) * body
    nod = _rotation(pose.head * 0.6)
    neck1 = neck0 + nod @ ((np.array(animal.neck[1]) - np.array(animal.neck[0])) * (1, 1))
    head_at = neck0 + nod @ (np.array(animal.head_at) - np.array(animal.neck[0]))
    turn = _rotation(animal.head_angle + pose.head)

    def on_head(points: tuple[tuple[float, float], ...] | Points) -> Points:
        return head_at + (np.asarray(points) * build.head) @ turn.T

    head_axes = _pair(turn.T / build.head)
    head_origin = (float(head_at[0]), float(head_at[1]))
    far_ear = np.asarray(animal.ear) + animal.far_ear_shift
    parts.append(Part("ear", smooth(on_head(far_ear), 3), head_origin, head_axes, 0.8))

    along = (neck1 - neck0) / np.linalg.norm(neck1 - neck0)
    neck_axes = np.stack([along, [-along[1], along[0]]])
    if animal.crest:
        normal = np.array([-along[1], along[0]])
        w0, w1 = animal.neck_widths
        spine = [
            neck0 + 0.40 * w0 * normal + 0.1 * along,
            (neck0 + neck1) / 2 + 0.30 * (w0 + w1) * normal,
            neck1 + 0.48 * w1 * normal,
            neck1 + 0.07 * along + 0.35 * w1 * normal,
        ]
        parts.append(
            Part("mane", ribbon(spine, [0.05, 0.10, 0.09, 0.05]), tuple(neck0), _pair(neck_axes))
        )
    neck = ribbon(
        [neck0, (neck0 + neck1) / 2, neck1],
        [animal.neck_widths[0], sum(animal.neck_widths) * 0.47, animal.neck_widths[1]],
    )
    parts.append(Part("neck", neck, tuple(map(float, neck0)), _pair(neck_axes)))
    parts.append(
        Part("torso", smooth(np.asarray(animal.torso) * body), axes=_pair(np.diag(1 / body)))
    )
    leg(front=False, far=False)
    leg(front=True, far=False)
    if animal.ruff:
        x, y, rx, ry = animal.ruff
        # A ragged edge: hair, not a disc.
        edge = ellipse(x, y, rx, ry, points=28)
        edge = (x, y) + (edge - (x, y)) * (1 + 0.045 * (-1) ** np.arange(28))[:, None]
        parts.append(Part("ruff", on_head(edge), head_origin, head_axes))
    parts.append(Part("head", smooth(on_head(animal.head)), head_origin, head_axes))
    parts.append(Part("ear", smooth(on_head(animal.ear), 3), head_origin, head_axes))
    nose = np.asarray(animal.head)[np.argmax(np.asarray(animal.head)[:, 0])] - (0.018, -0.012)
    eye = on_head(ellipse(*animal.eye, animal.eye_radius, animal.eye_radius, points=10))
    parts.append(Part("eye", eye))
    parts.append(Part("nose", on_head(ellipse(*nose, 0.028, 0.024, points=10))))
    return parts


_VEHICLE_BODY = (
    (-0.50, 0.12),
    (-0.505, 0.30),
    (-0.495, 0.44),
    (-0.46, 0.49),
    (-0.30, 0.505),
    (0.0, 0.505),
    (0.18, 0.495),
    (0.26, 0.46),
    (0.37, 0.315),
    (0.46, 0.285),
    (0.50, 0.25),
    (0.515, 0.16),
    (0.50, 0.10),
    (0.30, 0.085),
    (0.0, 0.085),
    (-0.30, 0.085),
    (-0.48, 0.09),
)
WHEELS = (-0.30, 0.30)
WHEEL_RADIUS = 0.098


def _vehicle(build: Build, pose: Pose) -> list[Part]:
    stretch = np.array([build.length, build.height])
    bounce = np.array([0.0, 0.012 * np.sin(3 * pose.phase) * min(1.0, pose.stride * 3)])
    axes = _pair(np.diag(1 / stretch))
    origin = (0.0, float(bounce[1]))
    parts = [
        Part(
            "wheel",
            ellipse(x * build.length + 0.03, WHEEL_RADIUS, WHEEL_RADIUS, WHEEL_RADIUS),
            shade=0.6,
        )
        for x in WHEELS
    ]
    body = smooth(np.asarray(_VEHICLE_BODY) * stretch) + bounce
    parts.append(Part("body", body, origin, axes))
    for x in WHEELS:
        centre = (x * build.length, WHEEL_RADIUS)
        spin = _pair(_rotation(pose.phase))
        arch = ellipse(centre[0], centre[1] + 0.01, WHEEL_RADIUS * 1.2, WHEEL_RADIUS * 1.2)
        arch[:, 1] = np.maximum(arch[:, 1], 0.09)
        parts.append(Part("arch", arch, centre))
        tyre = ellipse(*centre, WHEEL_RADIUS, WHEEL_RADIUS)
        parts.append(Part("wheel", tyre, centre, spin))
        parts.append(
            Part(
                "hub",
                ellipse(*centre, WHEEL_RADIUS * 0.5, WHEEL_RADIUS * 0.5, points=12),
                centre,
                spin,
            )
        )
    return parts


def figure(kind: str, build: Build, pose: Pose) -> list[Part]:
    """The parts of a figure in painter's order, in local units.

    Args:
        kind: ``equine``, ``felid``, ``ursid`` or ``vehicle``.
        build: the individual's proportions.
        pose: what it does in this frame.
    """
    if kind == "vehicle":
        parts = _vehicle(build, pose)
    else:
        parts = _animal({"equine": EQUINE, "felid": FELID, "ursid": URSID}[kind], build, pose)
    if pose.lift:
        parts = [
            Part(
                p.name,
                np.add(p.outline, (0.0, pose.lift)),
                (p.origin[0], p.origin[1] + pose.lift),
                p.axes,
                p.shade,
            )
            for p in parts
        ]
    return parts


def place(outline: Points, matrix: np.ndarray) -> Points:
    """``outline`` in pixels, by a 2x3 map."""
    return outline @ matrix[:, :2].T + matrix[:, 2]


def clip(polygon: Points, width: float, height: float) -> Points:
    """The part of ``polygon`` inside the picture (Sutherland-Hodgman); (0, 2) if there is none."""
    for axis, limit, keep_below in (
        (0, 0.0, False),
        (0, width, True),
        (1, 0.0, False),
        (1, height, True),
    ):
        if len(polygon) == 0:
            break
        value = polygon[:, axis]
        inside = value <= limit if keep_below else value >= limit
        if inside.all():
            continue
        following, next_inside = np.roll(polygon, -1, 0), np.roll(inside, -1)
        kept: list[Points] = []
        for p, q, here, there in zip(polygon, following, inside, next_inside, strict=True):
            if here:
                kept.append(p)
            if here != there:
                kept.append(p + (q - p) * (limit - p[axis]) / (q[axis] - p[axis]))
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def area(polygon: Points) -> float:
    """Area of a simple polygon (0 for fewer than three points)."""
    if len(polygon) < 3:
        return 0.0
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
