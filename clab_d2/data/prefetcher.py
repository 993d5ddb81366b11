"""Items made in a thread, ahead of who asks for them."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

THREAD_NAME = "clab_d2 prefetcher"


class Prefetcher(Iterator[T], Generic[T]):
    """The items of an iterable, made in a thread before they are asked for.

    They come in order; an exception comes after the items before it, as it would without the
    thread. The thread ends with the last item, with :meth:`close`, or when this object is let go
    of; if it is making an item then, that is waited for.

    Args:
        items: what is iterated over, in the thread; a generator is closed there, too.
        ahead: how many items to have ready at most.
        newest: for a live source: rather than wait where ``ahead`` items are ready, drop the
            oldest and go on.
    """

    def __init__(self, items: Iterable[T], ahead: int = 1, newest: bool = False) -> None:
        if ahead < 1:
            raise ValueError(f"ahead is {ahead}; it must be at least 1")
        self._buffer: _Buffer[T] = _Buffer(ahead, newest)
        thread = threading.Thread(
            target=_produce, args=(items, self._buffer), name=THREAD_NAME, daemon=True
        )
        # Also at Python's exit, when a daemon thread would be cut off in whatever it is doing.
        self._stop = weakref.finalize(self, _stop, self._buffer, thread)
        thread.start()

    def __next__(self) -> T:
        try:
            return self._buffer.take()
        except BaseException:  # StopIteration and signals, too
            self.close()
            raise

    def close(self) -> None:
        """End the thread; what is ready is thrown away."""
        self._stop()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Buffer(Generic[T]):
    """The items between the thread and its reader; neither keeps the other alive."""

    def __init__(self, ahead: int, newest: bool) -> None:
        self._ahead = ahead
        self._newest = newest
        self._changed = threading.Condition()
        self._ready: deque[T] = deque(maxlen=ahead)  # drops its oldest
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None

    def wait_for_room(self) -> bool:
        """Wait until an item is wanted; False if none is any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._newest or len(self._ready) < self._ahead
            )
            return not self._stopped

    def put(self, item: T) -> None:
        with self._changed:
            self._ready.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = self._ended = True
            self._ready.clear()
            self._changed.notify_all()

    def take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        raise StopIteration if error is None else error


def _produce(items: Iterable[T], buffer: _Buffer[T]) -> None:
    """The thread."""
    error = None
    try:
        iterator = iter(items)
        try:
            while buffer.wait_for_room():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                buffer.put(item)
                del item  # the reader's now
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
    except BaseException as caught:  # told to the reader, whatever it is
        error = caught
    buffer.end(error)


def _stop(buffer: _Buffer[Any], thread: threading.Thread) -> None:
    buffer.stop()
    # A garbage collection may let go of the reader in this very thread.
    if thread is not threading.current_thread():
        thread.join()
