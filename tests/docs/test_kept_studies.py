"""docs/study: its tables are what the tool makes of the metrics kept beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = sorted((ROOT / "docs" / "study").glob("*/study_results.json"))


@pytest.mark.parametrize("results", KEPT, ids=lambda path: path.parent.name)
def test_tables_follow_from_the_metrics(results: Path, tmp_path: Path) -> None:
    name = results.parent.name
    subprocess.run(
        [
            sys.executable, str(ROOT / "tools" / "study.py"),
            "--study", str(ROOT / "studies" / f"{name}.yaml"),
            "--output", str(tmp_path), "--tables-only", str(results),
        ],
        cwd=ROOT, check=True,
    )  # fmt: skip
    made, kept = (folder / "table.md" for folder in (tmp_path, results.parent))
    assert made.read_text() == kept.read_text()


def test_there_are_kept_studies() -> None:
    assert KEPT
