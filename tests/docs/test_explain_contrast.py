"""docs/scripts/explain_contrast.py: what it counts, on frames whose answer is known."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = runpy.run_path(
    str(Path(__file__).resolve().parents[2] / "docs" / "scripts" / "explain_contrast.py")
)


def _unit(angles: list[float]) -> torch.Tensor:
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_retrieval_counts_clear_frames_that_are_not_neighbours() -> None:
    # Video 1 lies at 0 degrees, video 2 at 40; one dark frame of video 1 looks like video 2's.
    frames = _unit([0, 0, 0, 38, 0, 0, 40, 40, 40, 40])
    videos = np.array([1] * 6 + [2] * 4)
    kinds = np.array(["clear"] * 3 + ["darkness", "clear", "fog"] + ["clear"] * 4)
    found = SCRIPT["retrieval"](frames, videos, kinds)
    assert found["darkness"] == 0 and found["fog"] == 100 and found["clear"] == 100
    assert list(found) == ["darkness", "fog", "clear", "all"]
    # Three frames have no clear one of their video that is not too near; of the others one misses.
    assert found["all"] == pytest.approx(100 * 6 / 7)


def test_similarity_within_and_between_videos(tmp_path: Path) -> None:
    frames = {"run": _unit([0, 10, 60, 60])}
    (row,) = SCRIPT["draw_similarity"](frames, np.array([1, 1, 2, 2]), tmp_path / "s.png")
    cosine = lambda degrees: np.cos(np.deg2rad(degrees))  # noqa: E731
    assert row["within"] == pytest.approx((cosine(10) + 1) / 2)
    assert row["between"] == pytest.approx((cosine(60) + cosine(50)) / 2)
    assert row["distance in standard deviations"] > 3
    assert (tmp_path / "s.png").stat().st_size > 1000
