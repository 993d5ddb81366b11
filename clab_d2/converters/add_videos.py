"""Videos for a COCO file of frames, told by the names of the files.

Tools that label pictures know no videos, and write frames of one as so many stills. What is left of
the order is in the names: ``garden/000012.jpg``, ``garden_12.png``, ``garden.mp4#12``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath

from clab_d2.converters.coco_vid_parts import Json
from clab_d2.data.coco_json import has_videos
from clab_d2.data.video_frames import split_frame_name
from clab_d2.errors import DataError

__all__ = ["add_videos"]

# No more digits than make a sensible number: the file may be anyone's.
_NUMBERED = re.compile(r"(.*?)(\d{1,18})", re.DOTALL)
# What a labelling service hangs on: garden_mp4-12_jpg.rf.0123456789abcdef.jpg
_HANGS_ON = re.compile(r"(_(jpe?g|png|bmp|webp))?\.rf\.[0-9a-f]+$", re.IGNORECASE)

_Place = tuple[str, int]  # the name of a video, and the number in a file's name


def add_videos(data: Json) -> Json:
    """Make videos of images whose file names differ by the number at their end alone.

    Such images of one folder are one video; its frames go by that number, whatever its gaps. An
    image that has no such other stays a still.

    Args:
        data: of :func:`clab_d2.converters.coco_vid_parts.read_coco_vid`; left as it is.

    Raises:
        DataError: there are videos already, or no two such images, or two of one number.
    """
    if has_videos(data):
        raise DataError("has videos already; --add-videos is for files whose images are stills")
    frames: dict[str, dict[int, Json]] = defaultdict(dict)
    for image in data["images"]:
        place = _place_of(image["file_name"])
        if place is None:
            continue
        video, number = place
        other = frames[video].setdefault(number, image)
        if other is not image:
            raise DataError(
                f"{other['file_name']} and {image['file_name']} are both frame {number} of "
                f"{video!r}; keep one of them"
            )
    found = {video: of_video for video, of_video in frames.items() if len(of_video) > 1}
    if not found:
        raise DataError(
            "no two images are frames of one video by their file names, which are to differ by "
            "the number at their end alone, as garden/000012.jpg"
        )
    places = {
        of_video[number]["id"]: {"video_id": video_id, "frame_id": frame_id}
        for video_id, of_video in enumerate(found.values(), start=1)
        for frame_id, number in enumerate(sorted(of_video))
    }
    return {
        **data,
        "videos": [{"id": number, "name": name} for number, name in enumerate(found, start=1)],
        "images": [{**image, **places.get(image["id"], {})} for image in data["images"]],
    }


def _place_of(file_name: str) -> _Place | None:
    of_video_file = split_frame_name(file_name)
    if of_video_file is not None:
        return of_video_file
    path = PurePosixPath(file_name)
    numbered = _NUMBERED.fullmatch(_HANGS_ON.sub("", path.stem))
    if numbered is None:
        return None
    return str(path.parent / numbered[1]), int(numbered[2])
