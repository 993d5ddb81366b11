"""What a Mini VID holds: the line of figures for a split, and the contact sheet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from clab_d2.evaluation.motion_iou import SPEED_NAMES, motion_iou_from_tracks, motion_speed

from .coats import CLASSES
from .plan import Box


@dataclass
class VideoRecord:
    """What is known of a video (or still) once it is made."""

    name: str  # path below Data/VID or Data/DET
    width: int
    height: int
    boxes: list[list[Box]]  # one list a frame
    degradations: list[list[str | None]]  # a list a track, an entry a frame


def speeds_of(records: list[VideoRecord]) -> Counter[str]:
    """How many annotated objects are slow, medium and fast."""
    rows = [
        (video, box.track, frame, box.xmin, box.ymin, box.xmax, box.ymax)
        for video, record in enumerate(records)
        for frame, boxes in enumerate(record.boxes)
        for box in boxes
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 7)
    values = motion_iou_from_tracks(table[:, 0], table[:, 1], table[:, 2], table[:, 3:])
    return Counter(SPEED_NAMES[i] for i in motion_speed(values))


def describe(records: list[VideoRecord], stills: bool = False) -> dict[str, Any]:
    """Counts and shares of a split."""
    per_class: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    frames = degraded = objects = hidden = 0
    for record in records:
        frames += len(record.boxes)
        for frame, boxes in enumerate(record.boxes):
            states = [record.degradations[b.track][frame] for b in boxes]
            degraded += any(s is not None for s in states)
            hidden += sum(s is not None for s in states)
            objects += len(boxes)
            per_class.update(b.name for b in boxes)
            kinds.update(s for s in states if s is not None)
    result: dict[str, Any] = {
        "videos": len(records),
        "frames": frames,
        "objects": objects,
        "objects_per_class": {name: per_class[name] for name in sorted(per_class)},
        "degraded_frames": round(degraded / max(frames, 1), 4),
        "degraded_objects": round(hidden / max(objects, 1), 4),
        "degradations": {kind: kinds[kind] for kind in sorted(kinds)},
    }
    if not stills:
        speeds = speeds_of(records)
        result["speed"] = {
            k: round(speeds[k] / max(objects, 1), 4) for k in ("slow", "medium", "fast")
        }
    return result


def line_of(split: str, facts: dict[str, Any]) -> str:
    """The line printed for a split."""
    classes = ", ".join(f"{name} {n}" for name, n in facts["objects_per_class"].items())
    what = "pictures" if split == "det" else "videos"
    text = f"{split}: {facts['videos']} {what}, {facts['frames']} frames, "
    text += f"{facts['objects']} objects ({classes})"
    if "speed" in facts:
        speed = facts["speed"]
        text += "; " + ", ".join(f"{k} {100 * v:.0f}%" for k, v in speed.items())
    return text + f"; {100 * facts['degraded_frames']:.0f}% of frames degraded"


def _labelled(
    picture: np.ndarray, boxes: list[Box], note: str, size: tuple[int, int], scale: int = 2
) -> np.ndarray:
    width, height = size
    tile = np.full((height * scale + 18, width * scale, 3), 24, np.uint8)
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for box in boxes:
        cv2.rectangle(
            picture,
            (box.xmin * scale, box.ymin * scale),
            ((box.xmax + 1) * scale - 1, (box.ymax + 1) * scale - 1),
            (255, 220, 60),
            1,
        )
    h, w = min(picture.shape[0], height * scale), min(picture.shape[1], width * scale)
    tile[18 : 18 + h, :w] = picture[:h, :w]
    cv2.putText(
        tile, note, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.40, (235, 235, 235), 1, cv2.LINE_AA
    )
    return tile


def contact_sheet(root: Path, records: list[VideoRecord], columns: int = 5) -> np.ndarray:
    """A row for each class: one of its videos, clear and degraded frames, boxes drawn in."""
    rows: list[np.ndarray] = []
    unused = list(records)
    for name in CLASSES:
        record = max(unused, key=lambda record: _telling(record, name), default=None)
        if record is None or not _telling(record, name)[0]:
            continue
        unused.remove(record)
        frames = _telling_frames(record, name, columns)
        tiles = []
        for frame in frames:
            path = root / "Data" / "VID" / record.name / f"{frame:06d}.JPEG"
            data = np.frombuffer(path.read_bytes(), np.uint8)
            picture = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()
            states = [
                f"{b.name}: {record.degradations[b.track][frame] or 'clear'}"
                for b in record.boxes[frame]
            ]
            note = f"{frame} " + (", ".join(states) or "nobody")
            tiles.append(_labelled(picture, record.boxes[frame], note, (200, 136)))
        while len(tiles) < columns:
            tiles.append(np.full_like(tiles[0], 24))
        rows.append(np.concatenate(tiles, axis=1))
    if not rows:
        return np.zeros((1, 1, 3), np.uint8)
    return np.concatenate(rows, axis=0)


def _telling(record: VideoRecord, name: str) -> tuple[int, bool, int, int]:
    """How much a video shows of a class: kinds of degradation, best of one object by itself."""
    seen = [
        (record.degradations[box.track][frame], box.xmax - box.xmin)
        for frame, boxes in enumerate(record.boxes)
        for box in boxes
        if box.name == name
    ]
    kinds = len({kind for kind, _ in seen})
    return min(kinds, 3), len(record.degradations) == 1, kinds, max((w for _, w in seen), default=0)


def _telling_frames(record: VideoRecord, name: str, count: int) -> list[int]:
    """Frames of a video in order: at least two clear ones, and one of each degradation."""
    by_kind: dict[str | None, list[int]] = {}
    for frame, boxes in enumerate(record.boxes):
        for box in boxes:
            if box.name == name:
                by_kind.setdefault(record.degradations[box.track][frame], []).append(frame)
                break
    clear = by_kind.pop(None, [])
    chosen = {f[len(f) // 2] for f in list(by_kind.values())[: count - 1]}
    for i in range(count):
        if len(chosen) >= count or not clear:
            break
        chosen.add(clear[round(i * (len(clear) - 1) / max(count - 1, 1))])
    rest = [f for f in range(len(record.boxes)) if f not in chosen]
    while len(chosen) < count and rest:
        chosen.add(rest.pop(0))
    return sorted(chosen)[:count]
