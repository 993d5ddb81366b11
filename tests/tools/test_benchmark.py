from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from tool_modules import import_tool

from clab_d2.benchmark import OURS, PLAIN, SINGLE


def run(repo_root, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/benchmark.py", "--size", "64", "96", *arguments],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("quick", [True, False])
def test_measures_every_variant_on_the_same_key_frames(repo_root, tmp_path, quick):
    done = run(
        repo_root, "--config-file", "configs/quick_schedules/clab_quick.yaml", "--frames", "3",
        "--plain-frames", "2", *(["--quick"] if quick else []), "--output", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "benchmark.json").read_text())
    assert {name: len(values) for name, values in figures["seconds"].items()} == {
        SINGLE: 3, OURS: 3, PLAIN: 2,
    }  # fmt: skip
    assert figures["agreement"]["double"] < 1e-6
    assert figures["agreement"]["ours"] < 0.1
    ours = figures["variants"][OURS]
    assert ours["x single, least"] <= ours["x single"] <= ours["x single, most"]
    assert "Temporal RoI Align: search" in figures["stages"]
    assert all(value > 0 for value in figures["stages"].values())
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "benchmark.md").read_text() in done.stdout + "\n"
    if quick:
        assert "scaling" not in figures
        return
    assert {name: len(rows) for name, rows in figures["scaling"].items()} == {
        "references": 5, "resolution": 4, "video length": 4,
    }  # fmt: skip
    for row in figures["variants"].values():
        # A process that has just loaded its libraries holds hundreds of MiB: not counted.
        assert 0 < row["peak MiB"] < 200 and row["weights MiB"] > 0
    for row in figures["training"].values():
        assert row["s a step"] > 0 and row["peak MiB"] > 0


def test_one_stage_detector(repo_root, tmp_path):
    done = run(
        repo_root, "--config-file", "configs/quick_schedules/dense_quick.yaml", "--frames", "3",
        "--plain-frames", "2", "--quick", "--output", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "benchmark.json").read_text())
    assert {name: len(values) for name, values in figures["seconds"].items()} == {
        SINGLE: 3, OURS: 3, PLAIN: 2,
    }  # fmt: skip
    assert {"one-stage head", "attention between predictions"} <= set(figures["stages"])
    assert "agreement" not in figures, "there is no formula of Temporal RoI Align to agree with"


def test_a_single_frame_config_is_refused_in_one_line(repo_root):
    config = "configs/quick_schedules/faster_rcnn_quick.yaml"
    done = run(repo_root, "--config-file", config)
    assert done.returncode == 2
    assert "single-frame detector has nothing to compare" in done.stderr.splitlines()[-1]


def test_real_features_and_computing_time(repo_root, tmp_path):
    done = run(
        repo_root, "--config-file", "configs/quick_schedules/clab_quick.yaml", "--frames", "1",
        "--plain-frames", "0", "--quick", "--real", "--cpu-time", "--output", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "benchmark.json").read_text())
    assert figures["size"] == [64, 96] and figures["real"]["size"] == [320, 512]
    assert set(figures["real"]["variants"]) == {SINGLE, OURS}
    assert figures["real"]["clock"] == "seconds of computing"
    assert "bikes.mp4" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_report_needs_a_gpu(repo_root, tmp_path):
    done = run(repo_root, "--gpu-report", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "--gpu-report measures a GPU, and PyTorch sees none" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_gpu_report_is_a_page_of_all_figures(repo_root, tmp_path, monkeypatch):
    """Made on a CPU, with a tiny detector in the place of the paper's; what needs a GPU fails
    there, each in its own row."""
    tool = import_tool("benchmark")
    quick = repo_root / "configs/quick_schedules/clab_quick.yaml"
    monkeypatch.setattr(tool.gpu_report, "require_gpu", lambda: None)
    monkeypatch.setattr(tool, "DEFAULT_CONFIG", quick)
    monkeypatch.setattr(tool, "CONFIGS", repo_root / "configs")
    monkeypatch.setattr(tool, "OTHER_CONFIG", quick)
    monkeypatch.setattr(tool, "REAL_SIZE", (64, 96))
    monkeypatch.setattr(tool.gpu_report, "WAYS", {"fp32": (), "bf16": ("TEST.PRECISION", "bf16")})
    arguments = ["--gpu-report", "--config-file", str(quick), "--size", "64", "96", "--frames", "1"]
    arguments += ["--plain-frames", "0", "--quick", "--output", str(tmp_path)]
    arguments += ["--opts", "MODEL.DEVICE", "cpu"]
    assert tool.main(arguments) == 0
    text = (tmp_path / "gpu_report.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == [
        "# Speed and memory on a GPU", "## Ways of running", "## Backbone in bf16",
        "## The search's kernels",
    ]  # fmt: skip
    figures = json.loads((tmp_path / "gpu_report.json").read_text())
    assert len(figures["Ways of running"]) == 4
    assert all(row["temporal, frames/s"] > 0 for row in figures["Ways of running"])
    eager, graphed = figures["Backbone in bf16"]
    assert eager["ms"] > 0 and "failed" in graphed
    assert all("ms" not in row and row["failed"] for row in figures["The search's kernels"])
    assert "tools/benchmark.py --gpu-report" in text
