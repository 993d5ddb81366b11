"""Items made ahead in a thread: order, bounds, exceptions, and that no thread is left behind."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from package_threads import package_threads, wait_until

from clab_d2.data.prefetcher import Prefetcher
from clab_d2.errors import DataError


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert package_threads() == []


class Numbers:
    """An endless iterator that notes what it gave, and where and whether it was closed."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.closed_in: str | None = None

    def __iter__(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                self.given.append(number)
                yield number
        finally:
            self.closed_in = threading.current_thread().name


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 30), st.integers(1, 5), st.booleans())
def test_all_items_in_order(length: int, ahead: int, fails: bool) -> None:
    def items() -> Iterator[int]:
        yield from range(length)
        if fails:
            raise DataError("frame 7 is gone")

    prefetcher = Prefetcher(items(), ahead)
    got, failed = [], False
    try:
        for item in prefetcher:
            got.append(item)
    except DataError as error:
        failed = str(error) == "frame 7 is gone"
    assert (got, failed) == (list(range(length)), fails)
    assert list(prefetcher) == [], "the end is the end"


def test_items_before_an_exception_come_first() -> None:
    prefetcher = Prefetcher(iter([1, 2, 0, 3]), ahead=4)
    inverse = Prefetcher((1 / n for n in prefetcher), ahead=4)
    assert (next(inverse), next(inverse)) == (1, 0.5)
    with pytest.raises(ZeroDivisionError) as caught:
        next(inverse)
    frames = [entry.name for entry in caught.traceback]
    assert "<genexpr>" in frames, "the traceback shows where it came up"
    assert list(inverse) == []
    prefetcher.close()


def test_no_more_than_asked_for_is_made() -> None:
    numbers = Numbers()
    with Prefetcher(numbers, ahead=3) as prefetcher:
        wait_until(lambda: len(numbers.given) == 3)
        for expected in range(20):
            assert next(prefetcher) == expected
            wait_until(lambda expected=expected: len(numbers.given) == expected + 4)
        time.sleep(0.05)
        assert len(numbers.given) == 23
    assert numbers.closed_in == "clab_d2 prefetcher"
    assert list(prefetcher) == []


def test_making_goes_on_while_an_item_is_in_use() -> None:
    """The next item is made although the reader does nothing but hold the one before."""
    numbers = Numbers()
    with Prefetcher(numbers, ahead=1) as prefetcher:
        assert next(prefetcher) == 0
        wait_until(lambda: numbers.given == [0, 1])


@pytest.mark.parametrize("how", ["close", "exception", "let go of", "cycle"])
def test_the_thread_ends_with_its_reader(how: str) -> None:
    numbers = Numbers()
    prefetcher = Prefetcher(numbers, ahead=2)
    next(prefetcher)
    assert len(package_threads()) == 1
    if how == "close":
        prefetcher.close()
        prefetcher.close()
    elif how == "exception":
        with pytest.raises(KeyError), prefetcher:
            raise KeyError
    elif how == "cycle":
        prefetcher.itself = prefetcher
        del prefetcher
        gc.collect()
    else:
        del prefetcher
    assert not package_threads()
    assert numbers.closed_in == "clab_d2 prefetcher"


def test_newest_drops_what_comes_too_late() -> None:
    lets_go = threading.Semaphore(0)
    numbers = Numbers()

    def gated() -> Iterator[int]:
        for number in numbers:
            lets_go.acquire()
            if number == 12:
                return
            yield number

    with Prefetcher(gated(), newest=True) as prefetcher:
        lets_go.release(5)
        wait_until(lambda: len(numbers.given) == 6)
        assert next(prefetcher) == 4
        lets_go.release(1)
        assert next(prefetcher) == 5, "waits where there is no newer one"
        lets_go.release(7)
        wait_until(lambda: numbers.closed_in is not None)
        assert list(prefetcher) == [11], "the last one is not lost to the end"


def test_how_far_ahead_must_make_sense() -> None:
    with pytest.raises(ValueError, match="ahead is 0"):
        Prefetcher([1], ahead=0)


def test_a_process_ends_with_a_thread_at_work() -> None:
    """Nobody closed it, and its items are endless."""
    code = (
        "import itertools\n"
        "from clab_d2.data.prefetcher import Prefetcher\n"
        "kept = Prefetcher(itertools.count())\n"
        "print(next(kept))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr[-500:]) == (0, "0\n", done.stderr[-500:])
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr
