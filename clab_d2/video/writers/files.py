"""Files that grow while a video is detected in, and lose nothing if that is broken off.

What is unfinished lies under ``<name>.partial<suffix>`` and can be read at any time; once it is
complete it gets its own name, in place of what was there.
"""

from __future__ import annotations

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from clab_d2.errors import DataError

logger = logging.getLogger(__name__)

_Output = TypeVar("_Output", bound="VideoOutput")


def partial_path(path: Path) -> Path:
    """Where a file lies until it is complete: ``a.json`` under ``a.partial.json``."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Tell what goes wrong in writing as a DataError that names the file."""
    try:
        yield
    except OSError as error:  # PyAV's are among them
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


def tell_of_partial(path: Path, num_frames: int) -> None:
    """One line of the log that says where the unfinished results are."""
    logger.warning("%s: not finished; the %d frames so far are kept there", path, num_frames)


class VideoOutput(ABC):
    """What one video gives, written frame by frame in a ``with`` block.

    A block that raises keeps what was written: under the partial name, or, where each frame has a
    file of its own, where it is.

    Attributes:
        path: the file, or the folder.
        num_frames: how many frames have been written.
    """

    path: Path
    num_frames: int = 0

    @abstractmethod
    def close(self) -> None:
        """Finish what is written."""

    @abstractmethod
    def leave(self) -> None:
        """Stop, after an error, and keep what there is."""

    def __enter__(self: _Output) -> _Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            self.leave()


class GrowingFile:
    """A text file (UTF-8) that is whole after every :meth:`append`.

    What must stand at a text's end ("]", "</annotations>") is written over each time: it is the
    ``tail``, and what is before it stays.

    Args:
        path: the complete file; its folder is made if missing.
        head: the file's beginning.
        tail: its end while nothing has been appended.

    Raises:
        DataError: the file cannot be written, here and in all methods.
    """

    def __init__(self, path: str | os.PathLike[str], head: str = "", tail: str = "") -> None:
        self.path = Path(path)
        self.partial = partial_path(self.path)
        with write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.partial, "w+b")  # noqa: SIM115
        self._end = 0  # of what stays
        self.append(head, tail)

    def append(self, text: str, tail: str = "") -> None:
        """Add ``text`` before the end, which becomes ``tail``."""
        content = text.encode()
        with write_errors(self.path):
            self._file.seek(self._end)
            self._file.write(content)
            self._end += len(content)
            self._file.write(tail.encode())
            self._file.truncate()
            self._file.flush()

    def overwrite(self, position: int, text: str) -> None:
        """Write ``text`` over as many bytes of the head, from ``position`` on."""
        with write_errors(self.path):
            self._file.seek(position)
            self._file.write(text.encode())
            self._file.flush()

    def commit(self) -> None:
        """Give the complete file its own name."""
        with write_errors(self.path):
            with self._file:
                os.fsync(self._file.fileno())
            os.replace(self.partial, self.path)

    def leave(self, num_frames: int) -> None:
        """Stop before the end: keep the partial file, unless there is nothing in it."""
        # What could not be written before is not wanted any more.
        with contextlib.suppress(OSError):
            self._file.close()
        if num_frames:
            tell_of_partial(self.partial, num_frames)
        else:
            self.partial.unlink(missing_ok=True)
