"""docs/scripts/measure_steps.py: configs take steps in turns, and are compared with the first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_videos import make_tiny_videos
from tool_modules import import_docs_script

ROOT = Path(__file__).resolve().parents[2]


def test_configs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = import_docs_script("measure_steps")
    configs = [
        str(ROOT / "configs" / "quick_schedules" / f"{name}_quick.yaml")
        for name in ("clab", "dense")
    ]
    options = [*make_tiny_videos(tmp_path).options, "MODEL.DEVICE", "cpu"]
    threads = torch.get_num_threads()
    try:
        assert script.main([*configs, "--rounds", "2", "--threads", "1", "--opts", *options]) == 0
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if " s a step " in line]
    assert [line.split(":")[0] for line in lines] == configs
    assert lines[0].endswith("; 1.00 in the time of one")
    assert all(
        re.search(r": [\d.]+ s a step \([\d.]+ to [\d.]+\); [\d.]+ in the time of one$", line)
        for line in lines
    )


def test_a_wrong_key_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    script = import_docs_script("measure_steps")
    config = str(ROOT / "configs" / "quick_schedules" / "dense_quick.yaml")
    assert script.main([config, "--opts", "MODEL.NO_SUCH_KEY", "1"]) == 2
    assert "NO_SUCH_KEY" in capsys.readouterr().err
