"""The threads that the package has started, and waiting for what they do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def package_threads() -> list[threading.Thread]:
    """Those that live now."""
    return [t for t in threading.enumerate() if t.name.startswith("clab_d2")]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is to bring about; fail if it does not in 10 seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
