"""The outline of a CocoVID JSON file: its lists, its videos and their frames, checked.

The first thing that is wrong ends the reading with one line that names file, record and remedy.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clab_d2.data.frame_files import first_out_of_order
from clab_d2.data.json_values import is_file_name, is_integer, is_number, is_shots, is_size
from clab_d2.errors import DataError
from clab_d2.io import refuse_special_file

logger = logging.getLogger(__name__)

Json = dict[str, Any]

#: How frames of a video become more than stills.
ADD_VIDEOS = (
    "of frames of a video, make it a file of videos by tools/check_dataset.py --add-videos, or add "
    '"videos", and to each image video_id and frame_id, as datasets/README.md says'
)
#: What is said of a file whose images are all stills.
NO_VIDEOS = (
    f"no image has a video_id: stills, whose references are the image itself; {ADD_VIDEOS}"
)


def read_coco_json(json_file: str) -> Json:
    """Read a COCO-style file and check its outline: an object with its three lists.

    Raises:
        DataError: the file is missing, not whole JSON, or not COCO.
    """
    refuse_special_file(json_file)
    try:
        with open(json_file, encoding="utf-8") as file:
            data = json.load(file)
    except FileNotFoundError:
        raise _missing_file(json_file) from None
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise DataError(
            f"{json_file}: not a whole JSON file ({error}); it was cut off or damaged, fetch or "
            "make it again"
        ) from None
    except OSError as error:
        raise DataError(f"{json_file}: cannot be read ({error.strerror})") from None
    for key in ("images", "annotations", "categories", "videos"):
        # A COCO file of stills has no videos.
        default = [] if key == "videos" else None
        if not isinstance(data, dict) or not isinstance(data.get(key, default), list):
            raise DataError(f'{json_file}: no list "{key}"; a CocoVID file needs one')
    if not data["images"]:
        raise DataError(f'{json_file}: "images" is empty; the dataset has no frame')
    return data


def has_videos(data: Json) -> bool:
    """Whether any image of a COCO file belongs to a video."""
    return any(isinstance(i, dict) and i.get("video_id") is not None for i in data["images"])


def _missing_file(json_file: str) -> DataError:
    """Return the error that an annotation file is not there."""
    return DataError(
        f"{json_file}: no such annotation file; check the path (built-in datasets are looked for "
        "in $DETECTRON2_DATASETS, or datasets/), or make it as datasets/README.md says"
    )


@dataclass(frozen=True)
class Video:
    video_id: int
    name: str
    file: str | None  # the video file that the JSON names
    images: list[Json]  # by frame
    shots: tuple[int, ...] = (0,)  # the first frame of each


def group_into_videos(json_file: str, data: Json) -> list[Video]:
    """Sort images into videos and check that each video's frames are 0, 1, 2, ... once each."""
    names: dict[int, str] = {}
    files: dict[int, str] = {}
    shots: dict[int, Any] = {}
    for position, video in enumerate(data.get("videos", [])):
        require(json_file, "videos", position, video, {"id": int})
        if video.get("file") is not None:
            require(json_file, "videos", position, video, {"file": str})
            _require_file_name(json_file, f"video {video['id']}", video["file"])
            files[video["id"]] = video["file"]
        if video["id"] in names:
            raise DataError(
                f'{json_file}: two videos have the id {video["id"]}; give each its own'
            )
        names[video["id"]] = str(video.get("name") or "")
        if video.get("shots") is not None:
            shots[video["id"]] = video["shots"]
    frames: dict[int, list[Json]] = {video_id: [] for video_id in names}
    stills: list[Json] = []
    needed = {"id": int, "file_name": str, "height": int, "width": int}
    for position, image in enumerate(data["images"]):
        require(json_file, "images", position, image, needed)
        _require_file_name(json_file, f"image {image['id']}", image["file_name"])
        if not is_size(image["height"]) or not is_size(image["width"]):
            raise DataError(
                f"{json_file}: image {image['id']} ({image['file_name']}) has size "
                f"{image['width']}x{image['height']}; state its size in pixels"
            )
        video_id = image.get("video_id")
        if video_id is None:
            stills.append(image)
            continue
        require(json_file, "images", position, image, {"video_id": int})
        if video_id not in frames:
            raise DataError(
                f"{json_file}: image {image['id']} ({image['file_name']}) belongs to video "
                f'{video_id}, which "videos" does not list; add it there'
            )
        require(json_file, "images", position, image, {"frame_id": int})
        frames[video_id].append(image)
    image_ids = [image["id"] for image in data["images"]]
    if len(set(image_ids)) != len(image_ids):
        raise DataError(
            f"{json_file}: two images have the id {first_repeat(image_ids)}; give each its own"
        )

    videos = []
    for video_id, images in frames.items():
        images.sort(key=lambda image: image["frame_id"])
        for expected, image in enumerate(images):
            if image["frame_id"] != expected:
                _raise_frame_error(json_file, names[video_id] or f"{video_id}", expected, image)
        if images:
            of_video = shots.get(video_id, [0])
            if not is_shots(of_video, len(images)):
                raise DataError(
                    f"{json_file}: video {names[video_id] or video_id} has {short(of_video)} as "
                    f'"shots"; list the first frame of each shot of its {len(images)} frames, '
                    "rising from 0, such as [0, 120]"
                )
            videos.append(
                Video(video_id, names[video_id], files.get(video_id), images, tuple(of_video))
            )
    if len(videos) < len(frames):
        empty = [names[v] or f"{v}" for v, images in frames.items() if not images]
        logger.warning(
            "%s: %d video(s) have no frame and are left out: %s", json_file, len(empty),
            some_of(empty),
        )
    first_still = max(frames, default=0) + 1
    videos += [Video(first_still + i, "", None, [image]) for i, image in enumerate(stills)]
    return videos


def warn_of_disorder(json_file: str, videos: Iterable[Video]) -> None:
    """Warn once where frames are numbered in another order than their files' names are."""
    found = []
    for video in videos:
        place = first_out_of_order([image["file_name"] for image in video.images])
        if place is not None:
            found.append((video, place))
    if found:
        video, place = found[0]
        before, after = (video.images[i]["file_name"] for i in (place - 1, place))
        logger.warning(
            "%s: frame_id disagrees with the numbers in the file names of %d video(s): of %s, "
            "frame %d is %s and frame %d is %s; if the names are right, number the frames by them",
            json_file, len(found), video.name or video.video_id, place - 1, before, place, after,
        )


def _raise_frame_error(json_file: str, video: str, expected: int, image: Json) -> None:
    frame_id = image["frame_id"]
    if frame_id < 0:
        problem = f"has frame_id {frame_id}"
    elif frame_id < expected:
        problem = f"has two frames with frame_id {frame_id}"
    else:
        problem = f"has no frame with frame_id {expected} but one with {frame_id}"
    raise DataError(
        f"{json_file}: video {video} {problem} ({image['file_name']}); number the frames of each "
        "video 0, 1, 2, ... without gap or repeat"
    )


def _require_file_name(json_file: str, record: str, name: str) -> None:
    if not is_file_name(name):
        raise DataError(
            f"{json_file}: {record} names {short(name)}, which no file can be called; correct it"
        )


_KINDS: dict[type, tuple[Callable[[Any], bool], str]] = {
    int: (is_integer, "an integer of at most 64 bits"),
    float: (is_number, "a number, and finite"),
    str: (lambda value: isinstance(value, str), "a string"),
    list: (lambda value: isinstance(value, list), "a list"),
}


def require(json_file: str, list_name: str, position: int, record: Any, keys: Json) -> None:
    for key, kind in keys.items():
        value = record.get(key) if isinstance(record, dict) else None
        fits, name = _KINDS[kind]
        if fits(value):
            continue
        has_id = isinstance(record, dict) and "id" in record
        identity = f" (id {short(record['id'])})" if has_id else ""
        what = "no" if value is None else f"{short(value)} as"
        raise DataError(
            f'{json_file}: {list_name}[{position}]{identity} has {what} "{key}"; it must be {name}'
        )


def short(value: Any, limit: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def first_repeat(values: Iterable[Any]) -> Any:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def some_of(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
