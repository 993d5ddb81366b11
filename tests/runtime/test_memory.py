from __future__ import annotations

import numpy as np
import pytest

from clab_d2.errors import DataError
from clab_d2.runtime.memory import FrameArrays, FrameMemory

AXES = {"rows": 0, "keys": 1}


def frame(number: int, length: int = 3) -> FrameArrays:
    shared = {"rows": np.full((length, 2), number), "keys": np.full((4, 5), 10 * number)}
    return FrameArrays((8, 8), {}, {k: v.astype(np.float32) for k, v in shared.items()})


def memory(*numbers: int) -> FrameMemory:
    made = FrameMemory(AXES)
    made.begin(1)
    for number in numbers:
        made.put(number, frame(number))
    return made


def counted(made: FrameMemory, numbers: list[int], key: int) -> dict[int, float]:
    """By frame, how often it counts; its arrays are all in its place."""
    joined, counts = made.references(numbers, key)
    assert joined["rows"].shape == (len(counts), 3, 2) and joined["keys"].shape[0] == 4
    found = {}
    for place, count in enumerate(counts):
        (value,) = np.unique(joined["rows"][place])
        assert (joined["keys"][:, place] == 10 * value).all()
        found[int(value)] = float(count)
    return found


def test_frames_are_joined_whichever_come_and_go() -> None:
    made = memory(*range(8))
    assert counted(made, [0, 1, 1, 2], 0) == {0: 1, 1: 2, 2: 1}
    assert counted(made, [1, 2, 3], 0) == {1: 1, 2: 1, 3: 1}
    assert counted(made, [7, 2, 7, 5], 0) == {7: 2, 2: 1, 5: 1}
    assert counted(made, [4], 0) == {4: 1}
    assert counted(made, [5, 4, 6, 0, 1], 0) == dict.fromkeys([5, 4, 6, 0, 1], 1.0)


def test_what_stays_is_not_copied_again() -> None:
    made = memory(*range(5))
    first, _ = made.references([0, 1, 2], 0)
    kept = made.get(1)
    assert kept is not None
    kept.shared["rows"][:] = 99  # would show if it were copied
    second, _ = made.references([3, 1, 2], 0)
    assert second["rows"] is first["rows"]
    assert sorted(np.unique(second["rows"])) == [1, 2, 3]


def test_unreadable_frames_and_those_of_another_size_are_left_out() -> None:
    made = memory(0, 1)
    made.put(2, None)
    made.put(3, frame(3, length=7))
    assert counted(made, [1, 2, 3], 0) == {1: 1}
    assert counted(made, [2, 3], 0) == {0: 1}, "the key frame stands in"
    joined, counts = made.references([0, 3], 3)
    assert joined["rows"].shape == (1, 7, 2) and counts.tolist() == [1]


def test_frames_end_with_their_video() -> None:
    made = memory(0, 1, 2)
    made.keep_only([2])
    with pytest.raises(DataError, match="frame 1 is a reference but was never given"):
        made.get(1)
    made.begin(1)
    assert made.get(2) is not None
    made.begin(2)
    with pytest.raises(DataError, match="frame 2"):
        made.get(2)
