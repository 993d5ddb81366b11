"""docs/scripts/explain_contrast.py: what it counts, on frames whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tool_modules import import_docs_script

SCRIPT = import_docs_script("explain_contrast")


def _unit(angles: list[float]) -> torch.Tensor:
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_retrieval_counts_clear_frames_that_are_not_neighbours() -> None:
    # Video 1 lies at 0 degrees, video 2 at 40; one dark frame of video 1 looks like video 2's.
    frames = _unit([0, 0, 0, 38, 0, 0, 40, 40, 40, 40])
    videos = np.array([1] * 6 + [2] * 4)
    kinds = np.array(["clear"] * 3 + ["darkness", "clear", "fog"] + ["clear"] * 4)
    found = SCRIPT.retrieval(frames, videos, kinds)
    assert found["darkness"] == 0 and found["fog"] == 100 and found["clear"] == 100
    assert list(found) == ["darkness", "fog", "clear", "all"]
    # Three frames have no clear one of their video that is not too near; of the others one misses.
    assert found["all"] == pytest.approx(100 * 6 / 7)


def test_similarity_within_and_between_videos(tmp_path: Path) -> None:
    videos = np.array([1, 1, 2, 2])
    frames = _unit([0, 10, 60, 60])
    within, between = SCRIPT.similarities(frames, videos)
    cosine = lambda degrees: np.cos(np.deg2rad(degrees))  # noqa: E731
    assert within.mean() == pytest.approx((cosine(10) + 1) / 2)
    assert between.mean() == pytest.approx((cosine(60) + cosine(50)) / 2)
    assert SCRIPT.distance(within, between) > 3
    rows = SCRIPT.draw_similarity(
        {"one": [frames], "two": [frames, _unit([0, 20, 60, 60])]}, videos, tmp_path / "s.png"
    )
    assert [row["within"] for row in rows] == ["0.992", "0.981 ± 0.011"]
    assert (tmp_path / "s.png").stat().st_size > 1000


def test_figures_of_several_seeds_have_their_spread(tmp_path: Path) -> None:
    one = {"fog": 50.0, "all": 60.0}
    rows = SCRIPT.draw_retrieval({"a": [one], "b": [one] * 2}, tmp_path / "r.png")
    assert rows == [
        {"run": "a", "fog": "50.0", "all": "60.0"},
        {"run": "b", "fog": "50.0 ± 0.0", "all": "60.0 ± 0.0"},
    ]
    seeds = [
        [{"iteration": at, "share, %": at + seed, "cosine": np.nan} for at in (0, 100)]
        for seed in (1, 2, 3)
    ]
    SCRIPT.draw_gradients({"CLAB": seeds, "one seed": seeds[:1]}, tmp_path / "g.png")
    assert (tmp_path / "g.png").stat().st_size > 1000


def test_runs_are_found_by_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (2, 1):
        (tmp_path / f"seed_{seed}").mkdir()
    found = SCRIPT.find_runs([f"CLAB={tmp_path}/seed_*", f"two={tmp_path}/seed_2"])
    assert {label: [run.name for run in runs] for label, runs in found.items()} == {
        "CLAB": ["seed_1", "seed_2"], "two": ["seed_2"],
    }  # fmt: skip
    assert SCRIPT.main(["gradients", "--run", "CLAB=nowhere", "--output", "g.png"]) == 2
    assert "error: --run 'CLAB=nowhere': write LABEL=PATTERN" in capsys.readouterr().err
