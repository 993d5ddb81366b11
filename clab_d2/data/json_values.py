"""What values of a JSON file may be: Python's reader lets pass NaN and integers of any length."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any


def is_box(bbox: Any) -> bool:
    """Whether a value is a box: x, y, width, height, finite and of no negative size."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return False
    x, y, width, height = map(float, bbox)
    return math.isfinite(x + y + width + height) and width >= 0 and height >= 0


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of at most 64 bits, as ids are."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_size(value: int) -> bool:
    """Whether an integer may be a picture's width or height, in pixels."""
    return 1 <= value < 2**31


def is_flag(value: Any) -> bool:
    """Whether a value is 0 or 1, or the same said by false or true."""
    return isinstance(value, int) and value in (0, 1)


def is_file_name(name: str) -> bool:
    """Whether a file can be called so."""
    try:
        return b"\0" not in name.encode()
    except UnicodeEncodeError:  # half a character
        return False


def is_shots(value: Any, num_frames: int | None = None) -> bool:
    """Whether a value lists the first frames of a video's shots: integers rising from 0.

    Args:
        value: any.
        num_frames: the video's length; None where it is not known.
    """
    if not isinstance(value, list) or not value or not all(map(is_integer, value)):
        return False
    if value[0] != 0 or any(a >= b for a, b in pairwise(value)):
        return False
    return num_frames is None or value[-1] < num_frames
