"""tools/analyze_model.py as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tool_modules import import_tool

analysis = import_tool("analyze_model")


def test_a_model_is_analysed(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cost.json"
    arguments = ["--config-file", config_file, "--references", "2", "--json", str(out)]
    assert analysis.main([*arguments, "--size", "64x96"]) == 0
    said = capsys.readouterr().out
    assert "training: forward pass of a clip" in said and "roi_heads.roi_aggregation" in said
    assert "the same to the last multiply-add" in said
    assert {part["name"] for part in json.loads(out.read_text())["training"]["parts"]} >= {
        "backbone", "contrastive_branch",
    }  # fmt: skip
    assert analysis.main([*arguments, "--size", "big"]) == 2
    assert "give HEIGHTxWIDTH" in capsys.readouterr().err
