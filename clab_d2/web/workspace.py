"""The files of a page's visitors: in one folder, and gone when the visitor goes."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
from pathlib import Path
from types import TracebackType


class Workspace:
    """A temporary folder with a folder for each job of each visitor.

    All of it is deleted when the ``with`` block ends, a visitor's jobs when the visitor begins a
    new one or goes; when the last visitor goes, so is what the web server itself keeps in it:
    uploads, and copies of what it sent.

    Attributes:
        root: the folder; the web server's own files go here, too.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="clab_d2_page_")
        self.root = Path(self._folder.name)
        self._numbers = itertools.count()
        self._jobs: dict[str, list[Path]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def enter(self, visitor: str) -> None:
        """A visitor has come."""
        with self._lock:
            self._jobs.setdefault(visitor, [])

    def new_job(self, visitor: str) -> Path:
        """An empty folder for a visitor's next job; those of the last one are deleted."""
        with self._lock:
            self._delete_jobs(visitor)
            folder = self.root / "jobs" / str(next(self._numbers))
            folder.mkdir(parents=True)
            self._jobs[visitor] = [folder]
            return folder

    def leave(self, visitor: str) -> None:
        """A visitor has gone."""
        with self._lock:
            self._delete_jobs(visitor)
            self._jobs.pop(visitor, None)
            if not self._jobs:
                for path in self.root.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)

    def _delete_jobs(self, visitor: str) -> None:
        for folder in self._jobs.get(visitor, []):
            shutil.rmtree(folder, ignore_errors=True)
