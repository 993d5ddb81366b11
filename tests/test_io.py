"""Files are whole or not there, whatever ends the writing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clab_d2.io import atomic_write, write_json


@pytest.mark.parametrize("old", [None, "old"])
def test_a_block_that_raises_leaves_what_was_there(old: str | None, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.json"
    if old is not None:
        path.parent.mkdir()
        path.write_text(old)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write("half")
        file.flush()
        raise KeyboardInterrupt
    assert [p.read_text() for p in path.parent.iterdir()] == ([old] if old else [])
    with pytest.raises(TypeError):
        write_json(path, {"a": 1, "b": object()})
    assert [p.read_text() for p in path.parent.iterdir()] == ([old] if old else [])
    write_json(path, {"é": [1, 2.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, 2.5]}
    assert list(path.parent.iterdir()) == [path]


def test_a_killed_process_leaves_the_old_file(repo_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_text("[]")
    # io.py by itself, as the whole package takes seconds to import.
    script = (
        "import os, runpy, signal, sys\n"
        "write = runpy.run_path(sys.argv[1])['atomic_write']\n"
        "with write(sys.argv[2]) as file:\n"
        "    file.write('[1, 2')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(repo_root / "clab_d2" / "io.py"), str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "[]"


def test_bytes_and_permissions(tmp_path: Path) -> None:
    """As of any new file of the user's, not private as temporary files are."""
    path = tmp_path / "a.npz"
    umask = os.umask(0o027)
    try:
        with atomic_write(path, "wb") as file:
            file.write(b"\x00\xff")
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"\x00\xff"
    assert path.stat().st_mode & 0o777 == 0o640
