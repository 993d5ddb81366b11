"""How long a video may be: one wrong number in a text must not fill the memory with frames."""

from __future__ import annotations

from clab_d2.errors import DataError

#: A video has no more frames: 55 hours at 25 a second.
MAX_FRAMES = 5_000_000


def check_length(where: str, num_frames: int) -> None:
    """Refuse a video longer than any.

    Raises:
        DataError: it has more than :data:`MAX_FRAMES`.
    """
    if num_frames > MAX_FRAMES:
        raise DataError(
            f"{where} would have {num_frames} frames, which none has (at most {MAX_FRAMES}, or 55 "
            "hours); correct the number"
        )
