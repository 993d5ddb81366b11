"""Where everything is in every frame of every video: numbers only, nothing is drawn here.

Boxes come from the outlines of the figures, so a plan knows them without rendering.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .background import PALETTES
from .coats import CLASSES, Look, draw_look
from .shapes import Build, Placement, Pose, area, clip, figure, place

MIN_VISIBLE = 0.25  # objects with less of their area inside the frame are not annotated
OBJECT_KINDS = ("motion_blur", "defocus", "shade", "grass", "leaves", "fence")
FRAME_KINDS = ("motion_blur", "defocus", "darkness", "fog")
OCCLUDERS = ("grass", "leaves", "fence")

_ANIMAL_GROUNDS = ("meadow", "savanna", "snow", "shore", "forest")
_VEHICLE_GROUNDS = ("street", "highway", "snow", "shore")

_SPLITS = {"train": 0, "val": 1, "det": 2}


@dataclass(frozen=True)
class Degradation:
    """What hides an object's markings in one frame."""

    kind: str
    run: int  # number of the run within the video: consecutive frames share it
    whole: bool  # the whole frame is degraded, not just the object
    angle: float = 0.0  # of motion blur, radians
    age: int = 0  # frames since the run began


@dataclass(frozen=True)
class Box:
    """An annotation: integer pixels, both ends inside the box."""

    track: int
    name: str
    xmin: int
    ymin: int
    xmax: int
    ymax: int
    occluded: bool


@dataclass(frozen=True)
class Camera:
    """Pan in pixels and zoom factor, one value a frame."""

    x: np.ndarray
    y: np.ndarray
    zoom: np.ndarray


@dataclass
class Track:
    """One object through its video."""

    look: Look
    build: Build
    speed: str  # what was planned: slow, medium or fast
    width: float  # pixels, at the first frame
    placements: list[Placement]
    poses: list[Pose]
    degradations: list[Degradation | None]

    def polygons(self, frame: int) -> list[np.ndarray]:
        """Outlines in pixels of all the parts."""
        matrix = self.placements[frame].matrix()
        parts = figure(CLASSES[self.look.name][1], self.build, self.poses[frame])
        return [place(part.outline, matrix) for part in parts]

    def extent(self, frame: int) -> tuple[float, float, float, float]:
        """Bounds of the figure in pixels, not clipped."""
        points = np.concatenate(self.polygons(frame))
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        return float(x0), float(y0), float(x1), float(y1)


@dataclass
class VideoPlan:
    """Everything that is in a video."""

    split: str
    index: int
    seed: tuple[int, ...]
    width: int
    height: int
    length: int
    ground: str
    horizon: float
    camera: Camera
    tracks: list[Track]
    frame_degradation: list[Degradation | None] = field(default_factory=list)

    def boxes(self, frame: int) -> list[Box]:
        """The annotations of a frame, tight around what of each figure lies inside the frame."""
        found: list[tuple[Box, float]] = []
        for number, track in enumerate(self.tracks):
            polygons = track.polygons(frame)
            corners = np.concatenate(polygons)
            (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
            if x1 <= 0 or y1 <= 0 or x0 >= self.width or y0 >= self.height:
                continue
            if x0 < 0 or y0 < 0 or x1 > self.width or y1 > self.height:
                whole = sum(area(p) for p in polygons)
                polygons = [clip(p, self.width, self.height) for p in polygons]
                if sum(area(p) for p in polygons) < MIN_VISIBLE * whole:
                    continue
                corners = np.concatenate(polygons)
                (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
            # A pixel counts if at least about a third of it is covered.
            xmin, ymin = int(np.floor(x0 + 0.35)), int(np.floor(y0 + 0.35))
            xmax, ymax = int(np.ceil(x1 - 0.35)) - 1, int(np.ceil(y1 - 0.35)) - 1
            xmin, ymin = max(xmin, 0), max(ymin, 0)
            xmax, ymax = min(xmax, self.width - 1), min(ymax, self.height - 1)
            if xmax - xmin < 4 or ymax - ymin < 4:
                continue
            state = track.degradations[frame]
            hidden = state is not None and state.kind in OCCLUDERS
            box = Box(number, track.look.name, xmin, ymin, xmax, ymax, hidden)
            found.append((box, track.placements[frame].y))
        return [_with_overlap(box, y, found) for box, y in found]


def _with_overlap(box: Box, y: float, others: list[tuple[Box, float]]) -> Box:
    """``box``, marked as occluded if a nearer object covers more than 30% of it."""
    size = (box.xmax - box.xmin + 1) * (box.ymax - box.ymin + 1)
    for other, near in others:
        if other.track == box.track or near <= y:
            continue
        w = min(box.xmax, other.xmax) - max(box.xmin, other.xmin) + 1
        h = min(box.ymax, other.ymax) - max(box.ymin, other.ymin) + 1
        if w > 0 and h > 0 and w * h > 0.3 * size:
            return Box(box.track, box.name, box.xmin, box.ymin, box.xmax, box.ymax, True)
    return box


# --- planning a video -----------------------------------------------------------------------------

# Mean width and height of a figure in local units: what turns a width in pixels into a scale.
_SPAN = {
    "equine": (1.32, 1.14),
    "felid": (1.50, 0.80),
    "ursid": (1.28, 0.77),
    "vehicle": (1.03, 0.51),
}
_REACH = {"equine": 0.40, "felid": 0.40, "ursid": 0.32, "vehicle": 0.0}


def _runs(length: int, share: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Frames [start, end) of degraded runs of 3 to 8 frames that fill about ``share``."""
    if length < 6:
        return [] if length < 3 else [(1, 1 + length // 2)]
    runs: list[tuple[int, int]] = []
    target = share * length
    clear = (1 - share) / max(share, 0.05)
    # Half of the videos begin in a degraded run.
    at = int(rng.integers(2, 7)) if rng.random() < 0.5 else 0
    done = 0
    while at < length and done < target - 1:
        run = int(min(rng.integers(3, 9), max(3, round(target - done)), length - at))
        if run >= 2:
            runs.append((at, at + run))
            done += run
        at += run + int(np.clip(round(run * clear * rng.uniform(0.7, 1.3)), 3, 9))
    return runs


def _camera(length: int, width: int, rng: np.random.Generator) -> Camera:
    t = np.arange(length, dtype=np.float64)
    style = rng.random()
    x = np.zeros(length)
    if style < 0.40:
        speed = rng.uniform(0.5, 3.0) * rng.choice([-1.0, 1.0])
        x = speed * (t - length / 2)
    elif style < 0.55:
        x = 0.15 * width * np.sin(2 * np.pi * t / rng.uniform(18, 36) + rng.uniform(0, 6))
    x = np.clip(x, -0.7 * width, 0.7 * width)
    shake = rng.uniform(0.0, 0.35)
    x = x + shake * np.sin(0.9 * t + rng.uniform(0, 6))
    y = shake * np.sin(1.3 * t + rng.uniform(0, 6))
    zoom = np.ones(length)
    if rng.random() < 0.2:
        zoom = np.linspace(1.0, rng.uniform(1.1, 1.3), length)
        if rng.random() < 0.5:
            zoom = zoom[::-1].copy()
    return Camera(x, y, zoom)


def _track(
    name: str,
    speed: str,
    plan: VideoPlan,
    rng: np.random.Generator,
    crowd: int = 1,
    direction: float | None = None,
) -> Track:
    """One object of class ``name`` that moves slowly, at medium speed or fast.

    Args:
        crowd: how many objects the video has; more of them are smaller.
        direction: 1 to the right, -1 to the left, None either.
    """
    kind = CLASSES[name][1]
    look = draw_look(name, rng)
    build = Build(
        length=float(rng.uniform(0.92, 1.08)),
        height=float(rng.uniform(0.94, 1.08)),
        head=float(rng.uniform(0.92, 1.1)),
        limb=1.0,
    )
    span, tall = _SPAN[kind]
    length, width, height = plan.length, plan.width, plan.height
    low, high = (42.0, 108.0) if crowd < 3 else (36.0, 80.0)
    if kind == "equine":
        low, high = low * 0.9, high * 0.85
    size = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    size = min(size, 0.93 * height * span / tall)
    scale = size / span
    t = np.arange(length, dtype=np.float64)
    sign = direction if direction is not None else float(rng.choice([-1.0, 1.0]))

    # Screen motion, relative to the object's own width: that is what motion IoU measures.
    if speed == "slow":
        velocity = rng.uniform(-0.0025, 0.0025) * size
        centre = rng.uniform(0.25, 0.75) * width
        x = centre + velocity * (t - length / 2)
        growth, rise = rng.uniform(-0.001, 0.001), 0.0
    elif speed == "medium":
        velocity = sign * rng.uniform(0.016, 0.030) * size
        centre = rng.uniform(0.35, 0.65) * width
        x = centre + velocity * (t - length / 2)
        if rng.random() < 0.3:  # goes back
            middle = centre + velocity * (length * rng.uniform(0.1, 0.3))
            x = np.where((x - middle) * sign > 0, 2 * middle - x, x)
        growth, rise = rng.uniform(-0.006, 0.008), rng.uniform(-0.10, 0.10)
    else:
        velocity = sign * rng.uniform(0.06, 0.14) * size
        style = rng.random()
        if style < 0.35 and length >= 14:
            # Leaves the frame and comes back.
            away = rng.uniform(1.0, 4.0) + size / abs(velocity)  # frames
            middle = rng.uniform(0.35, 0.65) * length
            x = width / 2 + sign * (width / 2 + abs(velocity) * (away / 2 - np.abs(t - middle)))
        elif style < 0.65 or length < 14:
            # Passes through; begins partly outside or already in the frame.
            x = width / 2 + velocity * (t - rng.uniform(0.35, 0.65) * length)
            limit = width / 2 + 0.3 * size
            phase = np.mod((x - width / 2) + limit, 4 * limit)
            x = width / 2 + np.where(phase < 2 * limit, phase, 4 * limit - phase) - limit
        else:
            # To and fro.
            reach = rng.uniform(0.30, 0.60) * width
            rate = abs(velocity) / reach * 1.25
            x = width / 2 + sign * reach * np.sin(rate * t + rng.uniform(0, 6.28))
        growth, rise = rng.uniform(-0.012, 0.015), rng.uniform(-0.2, 0.2)
    factor = np.exp(np.clip(growth * (t - length / 2), -0.35, 0.35))
    factor = np.minimum(factor, 0.98 * height * span / tall / size)
    zoom = plan.camera.zoom / plan.camera.zoom.mean()
    if speed == "slow":
        zoom = np.ones(length)  # the operator keeps it in the frame
    x = width / 2 + (x - width / 2) * zoom
    scales = scale * factor * zoom

    tall_px = tall * scale
    top = max(plan.horizon * height + 6, min(tall_px + 3, height - 4))
    bottom = height - 4.0
    foot = rng.uniform(min(top, bottom), bottom)
    y = foot + rise * (x - x.mean()) * 0.3
    y = np.clip(y, plan.horizon * height + 3, height + 4)
    if speed != "slow":
        y = y - plan.camera.y * 2

    ground_velocity = np.gradient(x) if length > 1 else np.zeros(1)
    ground_velocity = ground_velocity + (np.gradient(plan.camera.x) if length > 1 else 0.0)
    relative = ground_velocity / np.maximum(scales, 1e-6)
    # Of the path, not of a shaking camera.
    steady = np.convolve(np.pad(relative, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    heading = np.where(np.abs(steady) < 0.02, 0.0, np.sign(steady))
    # Whoever stands keeps facing where it faced before.
    facing = float(next((h for h in heading if h), sign))
    for i in range(length):
        if heading[i] and speed != "slow":
            facing = float(heading[i])
        heading[i] = facing
    turn = np.convolve(np.pad(heading, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    turn = np.where(np.abs(turn) < 0.35, np.where(turn >= 0, 0.35, -0.35), turn)

    gait = np.clip(np.abs(relative) * 7.0, 0.0, 1.0)
    if speed == "slow":
        gait = np.minimum(gait, 0.45)
    advance = np.clip(np.abs(relative) / max(_REACH[kind], 0.3) * 3.2, 0.0, 1.1)
    if kind == "vehicle":
        # Wheels roll: an angle of distance over radius, wherever it drives.
        advance = relative * np.sign(turn) / 0.098
    phase = rng.uniform(0, 6.28) + np.cumsum(advance)
    nod_rate, nod_phase, tail_phase = (
        rng.uniform(0.25, 0.6),
        rng.uniform(0, 6.28),
        rng.uniform(0, 6),
    )
    nod = (0.02 if speed == "slow" else 0.09) * np.sin(nod_rate * t + nod_phase)
    nod = nod + 0.06 * gait * np.sin(phase * 1.0)
    if speed == "slow":
        nod = np.clip(nod, -0.03, 0.03)
    base_nod = rng.uniform(-0.25, 0.15)
    tail_swing = (0.05 if speed == "slow" else 0.3) * np.sin(0.5 * t + tail_phase)
    gallop = gait * (speed == "fast") * (kind != "vehicle")
    slope = float(rng.uniform(-0.08, 0.08))
    placements, poses = [], []
    for i in range(length):
        pitch = slope + 0.05 * gallop[i] * np.sin(phase[i] + 0.6)
        pitch *= float(np.sign(turn[i]))
        placements.append(
            Placement(float(x[i]), float(y[i]), float(scales[i]), float(turn[i]), float(pitch))
        )
        poses.append(
            Pose(
                phase=float(phase[i]),
                stride=float(0.12 + 0.45 * gait[i]) if kind != "vehicle" else float(gait[i]),
                head=float(base_nod + nod[i]),
                tail=float(tail_swing[i]),
                stretch=float(0.06 * gallop[i] * np.sin(phase[i])),
                lift=float(0.05 * gallop[i] * max(0.0, np.cos(phase[i]))),
            )
        )
    return Track(look, build, speed, size, placements, poses, [None] * length)


def _degrade(plan: VideoPlan, share: float, rng: np.random.Generator) -> None:
    """Choose which frames hide what, for the whole frame or for each object by itself.

    A ``share`` of the frames, in runs short enough that a clear frame is near: training draws its
    references from the 9 frames before and after.
    """
    number = 0
    plan.frame_degradation = [None] * plan.length
    if (plan.index + plan.index // 8) % 9 < 4:
        for start, end in _runs(plan.length, share, rng):
            kind = str(rng.choice(FRAME_KINDS))
            angle = float(rng.uniform(-0.35, 0.35))
            for i in range(start, end):
                state = Degradation(kind, number, True, angle, i - start)
                plan.frame_degradation[i] = state
                for track in plan.tracks:
                    track.degradations[i] = state
            number += 1
        return
    for track in plan.tracks:
        for start, end in _runs(plan.length, share, rng):
            kind = str(rng.choice(OBJECT_KINDS))
            angle = float(rng.uniform(-0.35, 0.35))
            for i in range(start, end):
                track.degradations[i] = Degradation(kind, number, False, angle, i - start)
            number += 1


_SIZES = ((176, 128), (192, 112), (200, 136), (160, 120))


def _frame_size(index: int) -> tuple[int, int]:
    """Most videos are 192x128; every ninth has another size."""
    return _SIZES[index // 9 % len(_SIZES)] if index % 9 == 5 else (192, 128)


def _length(split: str, index: int, rng: np.random.Generator) -> int:
    if index == 3:
        return 1  # a video of one frame in each split
    if index % 12 == 7:
        return int(rng.integers(2, 13))  # shorter than the 14 reference frames of a test
    return int(rng.integers(18, 29)) if split == "train" else int(rng.integers(16, 27))


def plan_video(seed: int, split: str, index: int) -> VideoPlan:
    """Plan a video: the same for the same three arguments, whatever else is made."""
    key = (seed, _SPLITS[split], index)
    rng = np.random.default_rng(key)
    names = list(CLASSES)
    # Every block of eight videos has each class once as its first object.
    block = np.random.default_rng((seed, _SPLITS[split], index // len(names), 99))
    primary = names[int(block.permutation(len(names))[index % len(names)])]
    length = _length(split, index, rng)
    width, height = _frame_size(index)
    kind = CLASSES[primary][1]
    grounds = _VEHICLE_GROUNDS if kind == "vehicle" else _ANIMAL_GROUNDS
    plan = VideoPlan(
        split,
        index,
        key,
        width,
        height,
        length,
        ground=grounds[0],
        horizon=float(rng.uniform(0.22, 0.42)),
        camera=_camera(length, width, rng),
        tracks=[],
    )
    count = int(rng.choice([1, 2, 3, 4], p=[0.58, 0.27, 0.11, 0.04]))
    chosen = [primary]
    for _ in range(count - 1):
        draw = rng.random()
        twin = CLASSES[primary][2]
        if draw < 0.45:
            chosen.append(primary)
        elif draw < 0.50:
            chosen.append(twin)
        else:
            chosen.append(str(rng.choice([n for n in names if n not in (primary, twin)])))
    # A crowd of one kind of speed would be rare: each object has its own.
    cycle = ("slow", "medium", "fast", "fast", "medium", "slow", "medium", "fast")
    first = cycle[(index + index // len(cycle)) % len(cycle)]
    crossing = count >= 2 and rng.random() < 0.5
    for i, name in enumerate(chosen):
        speed = first if i == 0 else str(rng.choice(["slow", "medium", "fast"], p=[0.3, 0.4, 0.3]))
        direction = (1.0 if i % 2 == 0 else -1.0) if crossing else None
        plan.tracks.append(_track(name, speed, plan, rng, count, direction))
    _spread(plan)
    plan.ground = _contrasting([str(g) for g in rng.permutation(grounds)], plan.tracks)
    share = float(rng.uniform(0.33, 0.52)) if rng.random() > 0.06 else 0.0
    _degrade(plan, share, rng)
    return plan


def _contrasting(grounds: list[str], tracks: list[Track]) -> str:
    """The first landscape in which even the least visible of the objects stands out, or the best.

    Without it, a blurred brown horse would vanish before brown grass.
    """

    def contrast(ground: str) -> float:
        colour = np.array(PALETTES[ground].ground)
        return min(float(np.abs(colour - track.look.mean).sum()) for track in tracks)

    return next((g for g in grounds if contrast(g) > 0.4), max(grounds, key=contrast))


def _spread(plan: VideoPlan) -> None:
    """Objects that hardly move must not stand on one another for the whole video."""
    still = [t for t in plan.tracks if t.speed != "fast"]
    if len(still) < 2:
        return
    middle = plan.length // 2
    for i, track in enumerate(still):
        wanted = plan.width * (i + 0.75) / (len(still) + 0.5)
        shift = wanted - track.placements[middle].x
        track.placements = [
            Placement(p.x + shift, p.y, p.scale, p.turn, p.pitch) for p in track.placements
        ]


def plan_still(seed: int, index: int) -> VideoPlan:
    """Plan a DET picture: a single frame, most of them clear, a fifth with two objects."""
    plan = plan_video(seed, "det", index)
    rng = np.random.default_rng((*plan.seed, 5))
    middle = plan.length // 2
    tracks = plan.tracks[: 2 if index % 5 == 0 else 1]
    for track in tracks:
        if rng.random() < 0.6:
            track.degradations[middle] = None
        half = 0.5 * track.width
        x = float(np.clip(track.placements[middle].x, half, max(half, plan.width - half)))
        old = track.placements[middle]
        track.placements = [Placement(x, old.y, old.scale, old.turn, old.pitch)]
        track.poses = [track.poses[middle]]
        track.degradations = [track.degradations[middle]]
    camera = plan.camera
    state = plan.frame_degradation[middle]
    if any(track.degradations[0] is None for track in tracks):
        state = None
    if state is None:
        for track in tracks:
            own = track.degradations[0]
            if own is not None and own.whole:
                track.degradations = [None]
    return VideoPlan(
        "det",
        index,
        plan.seed,
        plan.width,
        plan.height,
        1,
        plan.ground,
        plan.horizon,
        Camera(
            camera.x[middle : middle + 1],
            camera.y[middle : middle + 1],
            camera.zoom[middle : middle + 1],
        ),
        tracks,
        [state],
    )
