"""Files are whole or not there, whatever ends the writing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from clab_d2.errors import DataError
from clab_d2.io import PendingFile, atomic_path, atomic_write, refuse_special_file, write_json


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


def test_a_library_that_opens_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    with pytest.raises(KeyboardInterrupt), atomic_path(path, ".png") as temporary:
        cv2.imwrite(str(temporary), np.zeros((2, 3, 3), np.uint8))
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with atomic_path(path, ".png") as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".a.png.") and temporary.suffix == ".png"
        cv2.imwrite(str(temporary), np.zeros((2, 3, 3), np.uint8))
        assert not path.exists()
    assert cv2.imread(str(path)).shape == (2, 3, 3)
    assert list(path.parent.iterdir()) == [path]


def test_a_pending_file_is_committed_or_discarded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content, ends in (("first", True), ("second", False), ("third", True)):
        pending = PendingFile(path)
        pending.temporary.write_text(content)
        if ends:
            pending.commit()
        pending.discard()
        pending.discard()
        assert path.read_text() == ("third" if content == "third" else "first")
        assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_a_folder_has_already(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "a") as file:
        file.write("text")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_where_nothing_can_be_written_it_shows_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        PendingFile(tmp_path / "file" / "a")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for good in ("file", "link", "", "none", "a\0b"):
        refuse_special_file(tmp_path / good)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: a named pipe, not a file; write its data to a fil"):
        refuse_special_file(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"/dev/null: a device, not a file"):
        refuse_special_file("/dev/null")
