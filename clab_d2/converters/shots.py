"""Where the videos of a CocoVID file cut, put into the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from clab_d2.converters.coco_vid_parts import Json
from clab_d2.data.coco_json import group_into_videos
from clab_d2.data.frame_files import FrameFiles
from clab_d2.data.frames import read_frame
from clab_d2.data.shot_finder import find_shots
from clab_d2.data.video_table import join_image_root
from clab_d2.errors import DataError


def add_shots(data: Json, json_file: str, image_root: str) -> Iterator[tuple[str, list[int]]]:
    """Find the first frames of the shots of each video, and set them as its ``shots``.

    Args:
        data: of :func:`clab_d2.converters.coco_vid_parts.read_coco_vid`; changed in place.
        json_file: where it comes from, for messages.
        image_root: folder that the JSON's file names are relative to, or its only video's file.

    Yields:
        Each video's name and its shots, once it has been looked through; stills have none.

    Raises:
        ConfigError: PySceneDetect is not installed.
        DataError: no frame of a video can be read.
    """
    records = {video["id"]: video for video in data.get("videos", [])}
    videos = group_into_videos(json_file, data)
    files = FrameFiles(image_root, len(videos))
    for video in videos:
        if video.video_id not in records:
            continue
        name = video.name or str(video.video_id)
        pictures = [image["file_name"] for image in video.images]
        names = files.names(video.name, video.file, pictures, range(len(pictures)))
        shots = find_shots(_frames(name, [join_image_root(files.root, n) for n in names]))
        records[video.video_id]["shots"] = shots
        yield name, shots


def _frames(video: str, files: Sequence[str]) -> Iterator[np.ndarray | None]:
    any_read = False
    for file in files:
        try:
            image = read_frame(file)
        except DataError:
            yield None
        else:
            any_read = True
            yield image
    if not any_read:
        raise DataError(f"no frame of {video} can be read, such as {files[0]}; check --image-root")
