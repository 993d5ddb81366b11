"""What may stand in a JSON file."""

from __future__ import annotations

from typing import Any

import pytest

from clab_d2.data.json_values import (
    is_box,
    is_file_name,
    is_flag,
    is_integer,
    is_number,
    is_size,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("test", "good", "bad"),
    [
        (is_integer, [0, -1, 2**63 - 1, -(2**63)], [2**63, -(2**63) - 1, 1.0, True, "1", None]),
        (is_number, [0, -1.5, 10**300], [NAN, INF, -INF, 10**400, True, "1", None, [1]]),
        (is_size, [1, 2**31 - 1], [0, -1, 2**31]),
        (is_flag, [0, 1, False, True], [2, -1, 1.0, NAN, "1", None, [1]]),
        (is_file_name, ["a.jpg", "", "貓/1.jpg", "a\nb"], ["a\0b", "\ud800"]),
        (
            is_box,
            [[0, 0, 0, 0], [-1.5, 2, 3, 4.5]],
            [
                *(None, "abcd", (1, 2, 3, 4), [1, 2, 3], [[1], 2, 3, 4], [1, 2, 3, "4"]),
                *([1, 2, -3, 4], [1, 2, NAN, 4], [1e308, 1e308, 1e308, 1e308], [1, 2, 10**400, 4]),
            ],
        ),
    ],
)
def test_values(test: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not test(value)] == []
    assert [value for value in bad if test(value)] == []
