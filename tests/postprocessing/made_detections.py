"""Detections for the tests of post-processing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from clab_d2.postprocessing import VideoDetections

Row = tuple[int, tuple[float, float, float, float], float, int]

#: Frame, box (few places, so that they overlap), score (so that sums are exact), class.
_row = st.tuples(
    st.integers(0, 3),
    st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(3, 6), st.integers(3, 5)).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    st.integers(1, 8).map(lambda n: n / 8),
    st.integers(0, 1),
)
rows_strategy = st.lists(_row, max_size=12)


def detections_of(rows: Sequence[Row]) -> VideoDetections:
    """Detections by frame, xyxy box, score and class."""
    frame, box, score, label = zip(*rows, strict=True) if rows else ((), (), (), ())
    return VideoDetections(np.array(frame), np.array(box), np.array(score), np.array(label))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two xyxy boxes, by the definition."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def long_video(frames: int, per_frame: int, seed: int = 0) -> VideoDetections:
    """One object, class 0, in all frames, and false alarms of class 1 that come and go."""
    rng = np.random.default_rng(seed)
    alarms = frames * (per_frame - 1)
    x = np.concatenate([np.linspace(0, 500, frames), rng.integers(0, 30, alarms) * 20.0])
    y = np.concatenate([np.zeros(frames), rng.integers(0, 2, alarms) * 15.0])
    box = np.stack([x, y, x + 40, y + 40], axis=1)
    box += rng.uniform(-1, 1, box.shape)
    return VideoDetections(
        frame=np.concatenate([np.arange(frames), np.repeat(np.arange(frames), per_frame - 1)]),
        box=box,
        score=np.concatenate([rng.uniform(0.3, 1, frames), rng.uniform(0.05, 0.4, alarms)]),
        class_index=np.concatenate([np.zeros(frames), np.ones(alarms)]).astype(int),
    )
