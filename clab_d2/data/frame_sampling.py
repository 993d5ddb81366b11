"""Which frames of a video serve as references of a key frame: pure functions of numbers.

Frames are numbered from 0. A list returned here may repeat a frame: it then counts as often as it
is listed when the model aggregates over it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable


def training_references(
    num_frames: int, key: int, num_refs: int, frame_range: int, rng: random.Random
) -> list[int]:
    """Draw a training clip's reference frames, half of them from each side of the key frame.

    CLAB's training (docs/method.md, 'Reference frames'): with ``num_refs`` 2 and ``frame_range`` 9,
    one frame at random from the 9 before the key frame and one from the 9 after it; at a video's
    end the one reference found is used twice; a video of one frame has its key frame stand in.

    Args:
        num_frames: length of the video.
        key: the key frame; it is never drawn.
        num_refs: how many references to return. An odd one out goes to a side drawn at random.
        frame_range: how many frames to each side may be drawn.
        rng: source of randomness; the same state gives the same frames.

    Returns:
        ``num_refs`` frames, those before the key first. A side with fewer frames than its half
        gives all it has, and the frames found are repeated until there are ``num_refs``.
    """
    _check_frame(num_frames, key)
    before = range(max(key - frame_range, 0), key)
    after = range(key + 1, min(key + frame_range, num_frames - 1) + 1)
    take_before = take_after = num_refs // 2
    if num_refs % 2:
        extra_before = rng.random() < 0.5
        take_before += extra_before
        take_after += not extra_before
    found = sorted(rng.sample(before, min(take_before, len(before))))
    found += sorted(rng.sample(after, min(take_after, len(after))))
    if not found:  # no frame on the side that was to give one: the other side, else the key itself
        others = [*before, *after]
        found = [rng.choice(others)] if others and num_refs else [key]
    return [found[i % len(found)] for i in range(num_refs)]


def adaptive_references(num_frames: int, n: int) -> list[int]:
    """Spread ``n`` references evenly over a whole video ("adaptive stride").

    Reference i is frame ``round(i * (num_frames - 1) / (n - 1))``, with Python's rounding (half to
    even; docs/method.md, 'Reference frames'), so that a video shorter than ``n`` repeats frames.
    The same references serve every key frame of the video. With ``n`` 1, for which that is
    undefined, the middle frame.
    """
    if num_frames < 1 or n < 1:
        raise ValueError(f"need num_frames >= 1 and n >= 1, got {num_frames} and {n}")
    if n == 1:
        return [(num_frames - 1) // 2]
    return [round(i * (num_frames - 1) / (n - 1)) for i in range(n)]


def fixed_stride_window(num_frames: int, key: int, k: int, stride: int) -> list[int]:
    """Return ``k`` frames on each side of the key frame, ``stride`` apart, and the key itself.

    The window lies on the grid of multiples of ``stride``, so that it moves only at every
    ``stride``-th key frame; in between, the key frame takes the middle place. Frames beyond the
    video are clamped to its first or last one.

    Returns:
        ``2 * k + 1`` frames, the key in the middle.
    """
    _check_frame(num_frames, key)
    _check_window(k, stride)
    base = key - key % stride
    window = [min(max(base + i * stride, 0), num_frames - 1) for i in range(-k, k + 1)]
    window[k] = key
    return window


def causal_window(key: int, k: int, stride: int) -> list[int]:
    """Return the last ``k`` multiples of ``stride`` before the key frame, and the key itself last.

    What a live stream has: frames of the past only. Every frame but the key has been a key frame
    in the window before, so a stream never has to go back to a frame that it let go. Before the
    video's start, frame 0 stands in.

    Returns:
        ``k + 1`` frames.
    """
    if key < 0:
        raise ValueError(f"key frame {key} is negative")
    _check_window(k, stride)
    last = (key - 1) // stride * stride
    return [max(last - i * stride, 0) for i in range(k - 1, -1, -1)] + [key]


def entering_frames(window: Iterable[int], previous: Iterable[int] | None) -> list[int]:
    """Return what a window holds that the window of the key frame before did not, in order.

    A memory that keeps exactly the last window needs these frames and no others.

    Args:
        window: frames of the window now; repeats are ignored.
        previous: frames of the window before, or None at a video's first key frame, where all
            of the window enters.
    """
    return sorted(set(window) - set(previous or ()))


def _check_frame(num_frames: int, key: int) -> None:
    if not 0 <= key < num_frames:
        raise ValueError(f"key frame {key} is not in a video of {num_frames} frames")


def _check_window(k: int, stride: int) -> None:
    if k < 0 or stride < 1:
        raise ValueError(f"need k >= 0 and stride >= 1, got {k} and {stride}")
