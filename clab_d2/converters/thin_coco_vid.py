"""Fewer key frames in a CocoVID file, so that measuring takes less time.

Neighbouring frames are much alike: every third of three times as many videos says more of a
detector, in the same time, than every frame of a third of them.
"""

from __future__ import annotations

from clab_d2.converters.coco_vid_parts import Json, annotated_by_video, keep_annotated
from clab_d2.errors import ConfigError

__all__ = ["thin"]


def thin(data: Json, every: int) -> Json:
    """Keep every so many of a video's annotated frames to learn from or to measure on.

    The others become references (``"annotated": false``).

    Args:
        data: of :func:`clab_d2.converters.coco_vid_parts.read_coco_vid`; left as it is.
        every: of each ``every`` annotated frames in a row the middle one is kept (the later of two
            middle ones), and of a video that has too few for that, its middle one.

    Raises:
        ConfigError: ``every`` is below 1.
    """
    if every < 1:
        raise ConfigError(f"every {every}: it must be at least 1")
    kept: set[int] = set()
    for known in annotated_by_video(data):
        chosen = known[every // 2 :: every] or known[len(known) // 2 : len(known) // 2 + 1]
        kept |= {image["id"] for image in chosen}
    return keep_annotated(data, kept.__contains__)
