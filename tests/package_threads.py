"""The threads that read ahead for the package, and waiting for what they do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from clab_d2.data.prefetcher import THREAD_NAME as PREFETCHER_THREAD


def package_threads() -> list[threading.Thread]:
    """Those that live now; a pool that computes stays for as long as its process."""
    return [t for t in threading.enumerate() if t.name == PREFETCHER_THREAD]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is to bring about; fail if it does not in 10 seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
