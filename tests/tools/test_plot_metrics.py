"""tools/plot_metrics.py as a command."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from tool_modules import import_tool

metrics = import_tool("plot_metrics")


def test_metrics_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [{"iteration": i, "loss_cls": 1.0, "vid/AP50": 50} for i in range(3)]
        (tmp_path / name / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    runs, out = [str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "m.png")
    assert metrics.main([*runs, "--output", out]) == 0
    assert "loss_cls, vid/AP50" in capsys.readouterr().out
    assert cv2.imread(out).shape[1] > 500
    assert metrics.main([*runs, "--labels", "one", "--output", out]) == 2
    assert "--labels: 1 names for 2 runs" in capsys.readouterr().err
