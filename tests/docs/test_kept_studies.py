"""docs/study: its tables are what the tool makes of the metrics kept beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_modules import import_tool

from clab_d2.study.declared import DeclaredConfigs
from clab_d2.study.plan import load_study
from clab_d2.study.results import read_results

ROOT = Path(__file__).resolve().parents[2]
KEPT = sorted((ROOT / "docs" / "study").glob("*/study_results.json"))


@pytest.mark.parametrize("results", KEPT, ids=lambda path: path.parent.name)
def test_tables_follow_from_the_metrics(
    results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    study = ROOT / "studies" / f"{results.parent.name}.yaml"
    arguments = ["--study", str(study), "--output", str(tmp_path)]
    assert import_tool("study").main([*arguments, "--tables-only", str(results)]) == 0
    made, kept = (folder / "table.md" for folder in (tmp_path, results.parent))
    assert made.read_text() == kept.read_text()


@pytest.mark.parametrize("results", KEPT, ids=lambda path: path.parent.name)
def test_digests_are_those_of_the_configs(
    results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So --kept knows the runs again. If a config was changed, they are runs of another one: see
    which study still has them. If a default was, raise DIGEST_VERSION."""
    monkeypatch.chdir(ROOT)
    study = load_study(f"studies/{results.parent.name}.yaml")
    configs = DeclaredConfigs(study.num_gpus, needs_datasets=False)
    runs = {(str(run.condition), run.seed): run for run in study.runs(tmp_path)}
    for result in read_results(results)[1]:
        run = runs[str(result.condition), result.seed]
        assert result.run["digest"] == configs.digest(run), run.label


def test_there_are_kept_studies() -> None:
    assert KEPT
