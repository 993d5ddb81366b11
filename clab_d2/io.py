"""Files that are either whole or not there at all.

:func:`atomic_write` gives an open file, :func:`atomic_path` a path for a library that opens the
file itself, and :class:`PendingFile` is for a writer that lives longer than one block.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clab_d2.errors import DataError

_SPECIAL_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def refuse_special_file(path: str | os.PathLike[str]) -> None:
    """Refuse what looks like a file but may never end, or never begin: pipes, sockets, devices.

    A missing file or a folder passes: what opens it tells.

    Raises:
        DataError: ``path`` is a named pipe, a socket or a device.
    """
    try:
        kind = _SPECIAL_FILES.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):  # no name that a file can have
        return
    if kind is not None:
        raise DataError(f"{os.fspath(path)}: {kind}, not a file; write its data to a file first")


class PendingFile:
    """A file that is written under another name until it is complete.

    That name, :attr:`temporary`, lies beside the file's own (on the same file system, so that the
    final rename is atomic) and begins with a dot. An empty file is made there at once: a folder
    that is missing is made, and one that cannot be written to is told before any work is done.

    Args:
        path: where the complete file is to be.
        suffix: what the temporary name ends with, where a library tells the format by it
            (``".mp4"``).

    Raises:
        OSError: if no file can be made there.
    """

    def __init__(self, path: str | os.PathLike[str], suffix: str = "") -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(
            tempfile.mktemp(f".tmp{suffix}", prefix=f".{self.path.name}.", dir=self.path.parent)
        )
        # Made by open() rather than by mkstemp, so that the file gets the user's own umask.
        with open(self.temporary, "xb"):
            pass

    def commit(self) -> None:
        """Give the file, closed by now and complete, its own name in place of what is there."""
        try:
            with open(self.temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self.temporary, self.path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Leave what is under the file's own name as it was. After :meth:`commit`, nothing."""
        self.temporary.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: str | os.PathLike[str], suffix: str = "") -> Iterator[Path]:
    """A path to write a file to, which appears under ``path`` only once it is complete.

    If the block raises, or the process dies, ``path`` is left as it was. Where Python writes the
    file, :func:`atomic_write` is shorter.

    Args:
        path: the file to write; its folder is made if missing.
        suffix: what the yielded path ends with, where a library tells the format by it.

    Yields:
        The path of an empty file to write over.
    """
    pending = PendingFile(path, suffix)
    try:
        yield pending.temporary
        pending.commit()
    finally:
        pending.discard()


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under ``path`` only once it is complete.

    If the block raises, or the process dies, ``path`` is left as it was.

    Args:
        path: the file to write; its folder is made if missing.
        mode: ``"w"`` for text (UTF-8) or ``"wb"`` for bytes.

    Yields:
        The open temporary file.
    """
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        DataError: one line, where it is missing, can't be read or is no JSON.
    """
    refuse_special_file(path)
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); is it truncated?") from error
    except RecursionError:
        raise DataError(
            f"{path}: nested too deep to be read; is it the right file, and whole?"
        ) from None


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = None) -> None:
    """Write ``value`` as JSON, atomically (see :func:`atomic_write`)."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=indent)
