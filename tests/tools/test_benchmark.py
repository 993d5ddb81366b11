from __future__ import annotations

import json
import subprocess
import sys


def run(repo_root, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/benchmark.py", "--size", "64", "96", *arguments],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )


def test_times_every_variant_on_the_same_key_frames(repo_root, tmp_path):
    output = tmp_path / "bench.json"
    config = "configs/quick_schedules/clab_quick.yaml"
    done = run(
        repo_root, "--config-file", config, "--frames", "2", "--no-memory", "--output", str(output)
    )
    assert done.returncode == 0, done.stderr
    times = json.loads(output.read_text())["times"]
    assert set(times) == {"single frame", "temporal", "no memory"}
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
    assert all(name in done.stdout for name in times)


def test_a_single_frame_config_is_refused_in_one_line(repo_root):
    config = "configs/quick_schedules/faster_rcnn_quick.yaml"
    done = run(repo_root, "--config-file", config)
    assert done.returncode == 2
    assert "single-frame detector has nothing to compare" in done.stderr.splitlines()[-1]
