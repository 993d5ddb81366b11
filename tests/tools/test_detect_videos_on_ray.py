"""tools/detect_videos.py --ray, on a cluster of two workers on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from encoded_videos import encode, moving_pictures
from tool_modules import import_tool

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "tests" / "stub_for_workers.py"


def test_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    encode(tmp_path / "a.mp4", moving_pictures(2))
    words = ["--weights", "w", "--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert import_tool("detect_videos").main([*words, "--ray", "local"]) == 2
    assert '--ray needs ray, which is not installed: pip install "clab_d2[ray]"' in (
        capsys.readouterr().err
    )


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose plug-in and cluster end with it."""
    words = ["--weights", "w", "--input", "videos", "--output", "results", "--import", str(STUB)]
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "detect_videos.py"), *words, *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_videos_are_shared_out(tmp_path: Path) -> None:
    """One that is broken and one that kills its worker don't stop the others."""
    pytest.importorskip("ray")
    videos, results = tmp_path / "videos", tmp_path / "results"
    videos.mkdir()
    for number in range(4):
        encode(videos / f"{number}.mp4", moving_pictures(3 + number))
    (videos / "broken.mp4").write_text("no video")
    alone = run(tmp_path, "--output", "alone")
    assert alone.returncode == 1, alone.stderr
    shutil.copy(videos / "0.mp4", videos / "deadly.mp4")

    shared = run(tmp_path, "--ray", "local")
    assert shared.returncode == 1, shared.stderr
    assert "4 videos written to results, 2 failed" in shared.stdout
    assert "broken.mp4: cannot be opened as a video" in shared.stderr
    assert "videos/deadly.mp4: its worker died" in shared.stderr
    for number in range(4):
        written, expected = (
            json.loads((folder / f"{number}.mp4.json").read_text())
            for folder in (results, tmp_path / "alone")
        )
        assert written == expected and len(written) == 3 + number

    (videos / "broken.mp4").unlink()
    (videos / "deadly.mp4").unlink()
    (results / "2.mp4.json").unlink()
    again = run(tmp_path, "--ray", "local")
    assert again.returncode == 0, again.stderr
    assert "4 videos, 3 of them done before" in again.stdout
    assert (results / "2.mp4.json").exists()
    bad = run(tmp_path, "--output", "none", "--ray", "local", "--import", "no_such_plugin")
    assert bad.returncode == 2
    assert "error: --import no_such_plugin: there is no module" in bad.stderr
