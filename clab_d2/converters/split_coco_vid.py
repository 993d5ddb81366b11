"""Split a CocoVID file into one to train on and one to measure on: by video, or by time.

Of one video, frames a second apart are nearly the same picture, so that to measure on whole videos
that training has not seen is best. Where there is one video, its last part serves: training then
has seen the scene, but not what happens in it later.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Collection

from clab_d2.converters.coco_vid_parts import (
    Json,
    annotated_by_video,
    images_by_video,
    keep_annotated,
    video_of,
)
from clab_d2.data.coco_json import NO_VIDEOS, has_videos
from clab_d2.errors import ConfigError, DataError

__all__ = ["split_by_time", "split_by_video"]


def split_by_video(
    data: Json,
    val_share: float = 0.2,
    names: Collection[str] | None = None,
    seed: int | None = None,
) -> tuple[Json, Json]:
    """Split by video; a still counts as one.

    Args:
        data: of :func:`read_coco_vid`; left as it is.
        val_share: the share of the videos for validation, in (0, 1); at least one goes to each
            side.
        names: these videos for validation, whatever their share.
        seed: draws them; without it they are spread evenly, as neighbours in a list are often
            alike.

    Returns:
        The file for training, and that for validation; both have all categories.

    Raises:
        DataError: there is one video only, a name is no video's, or a side would have no object.
    """
    _check_share(val_share)
    listed = [video["id"] for video in data.get("videos", [])]
    groups = list(dict.fromkeys([*listed, *images_by_video(data)]))
    if names is not None:
        ids = defaultdict(list)
        for video in data.get("videos", []):
            ids[video.get("name", "")].append(video["id"])
        for name in names:
            if name not in ids:
                known = ", ".join(list(ids)[:10]) or "none"
                raise DataError(f"no video is called {name!r}; there are {known}")
        for_val = {video_id for name in names for video_id in ids[name]}
    else:
        if len(groups) < 2:
            raise DataError("a split by video needs two, and there is one; split it by time")
        count = min(max(round(val_share * len(groups)), 1), len(groups) - 1)
        if seed is None:
            for_val = {groups[int((i + 0.5) * len(groups) / count)] for i in range(count)}
        else:
            for_val = set(random.Random(seed).sample(groups, count))
    parts = []
    for is_val in (False, True):
        part = {**data, "images": [], "annotations": []}
        if "videos" in data:
            part["videos"] = [v for v in data["videos"] if (v["id"] in for_val) == is_val]
        part["images"] = [i for i in data["images"] if (video_of(i) in for_val) == is_val]
        ids_here = {image["id"] for image in part["images"]}
        part["annotations"] = [a for a in data["annotations"] if a["image_id"] in ids_here]
        parts.append(part)
    return _with_objects(*parts)


def split_by_time(data: Json, val_share: float = 0.2) -> tuple[Json, Json]:
    """Split every video's annotated frames in time: the last of them are for validation.

    Both files list all frames. Those of the other side are ``"annotated": false``: references, of
    which nothing is learned or measured. What an object's other boxes tell of its speed is written
    down before they are parted (``motion_iou``).

    Args:
        data: of :func:`read_coco_vid`; left as it is.
        val_share: the share of each video's annotated frames for validation, in (0, 1). At least
            one goes to each side; a video with a single annotated frame, such as any still, is for
            training.

    Returns:
        The file for training, and that for validation.

    Raises:
        DataError: there is no video, or a side would have no object.
    """
    _check_share(val_share)
    if not has_videos(data):
        raise DataError(f"a split by time needs videos, and {NO_VIDEOS}; or split it by video")
    for_val: set[int] = set()
    for known in annotated_by_video(data):
        if len(known) > 1:
            # Half a frame more is rounded to validation, whatever the share's binary form.
            count = math.floor(val_share * len(known) + 0.5 + 1e-9)
            count = min(max(count, 1), len(known) - 1)
            for_val |= {image["id"] for image in known[-count:]}
    return _with_objects(
        keep_annotated(data, lambda image_id: image_id not in for_val),
        keep_annotated(data, for_val.__contains__),
    )


def _check_share(val_share: float) -> None:
    if not 0 < val_share < 1:
        raise ConfigError(f"the share for validation is {val_share:g}; it must be between 0 and 1")


def _with_objects(train: Json, val: Json) -> tuple[Json, Json]:
    """Check that there is something to learn and something to measure."""
    for side, part in (("training", train), ("validation", val)):
        known = {image["id"] for image in part["images"] if image.get("annotated", True)}
        of_known = [a for a in part["annotations"] if a["image_id"] in known]
        if all(annotation.get("iscrowd") for annotation in of_known):
            raise DataError(
                f"the {side} part would have no object; choose another share, or other videos"
            )
    return train, val
