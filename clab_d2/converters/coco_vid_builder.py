"""Annotated videos as other tools' files give them, and the CocoVID JSON made of them.

A reader of one tool's format (:mod:`clab_d2.converters.cvat`, :mod:`clab_d2.converters.mot`) fills
:class:`AnnotatedVideo`; what is the same for all of them is here: naming the frames, choosing the
classes, keeping boxes inside the picture, and splitting the videos into training and validation.
"""

from __future__ import annotations

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from clab_d2.converters.limits import check_length
from clab_d2.data.frame_files import natural_key
from clab_d2.data.frames import read_frame
from clab_d2.data.json_values import is_size
from clab_d2.data.video_frames import VideoFrameReader, is_video_file
from clab_d2.data.video_table import join_image_root
from clab_d2.errors import ConfigError, DataError
from clab_d2.evaluation.motion_iou import motion_iou_from_tracks

Json = dict[str, Any]

__all__ = [
    "DEFAULT_FRAMES",
    "AnnotatedVideo",
    "ConversionOptions",
    "Counts",
    "ObjectBox",
    "build_coco_vid",
    "frame_name",
    "split_videos",
    "unique_names",
]

DEFAULT_FRAMES = "{video}/{frame:06d}.jpg"

# Sub-pixel digits that are kept: CVAT writes two.
_DIGITS = 3


class ObjectBox(NamedTuple):
    """One object in one frame.

    Attributes:
        frame: the frame's number in its source (video file or folder), from 0.
        label: the class.
        track: the same for one object throughout its video; None if not known.
        bbox: x, y, width, height in pixels, the picture's top left corner being (0, 0).
        occluded: something hides part of it.
        ignored: it is to count neither as an object nor as background.
    """

    frame: int
    label: str
    track: Hashable | None
    bbox: tuple[float, float, float, float]
    occluded: bool = False
    ignored: bool = False


@dataclass
class AnnotatedVideo:
    """One video and its annotations.

    Attributes:
        name: unique in a dataset; part of the frames' file names.
        frames: numbers, in the source, of the frames that were shown to the annotator.
        boxes: the objects.
        size: (height, width) of the frames in pixels; None if the annotations don't say.
        last_frame: number of the source's last frame that belongs to the video, where the last of
            ``frames`` is an earlier one.
        source: name of the video file, None if the annotations don't say.
        unknown: frames whose truth is unknown.
        key_frames: frames with a box that was drawn rather than interpolated; None if unknown.
        pictures: how the source names its frames, as in :attr:`ConversionOptions.frames`.
        image_root: folder where the source has them, if it has.
    """

    name: str
    frames: range
    boxes: list[ObjectBox]
    size: tuple[int, int] | None = None
    last_frame: int | None = None
    source: str | None = None
    unknown: set[int] = field(default_factory=set)
    key_frames: set[int] | None = None
    pictures: str = DEFAULT_FRAMES
    image_root: str | None = None


@dataclass(frozen=True)
class ConversionOptions:
    """What the user chooses, whatever the annotations come from.

    Patterns are Python format strings with the fields ``video`` (the video's name), ``source``
    (name of its video file), ``frame`` (the frame's number in its source, from 0), ``number`` (the
    same from 1) and ``index`` (its position in the JSON, from 0). A picture pattern with a ``*``
    stands for the pictures found under the image root, in natural order.

    Attributes:
        classes: the classes to keep, in this order; all by default, in the annotations' order.
        frames: pattern of the pictures' names, relative to the image root.
        clips: pattern of the video files' names, relative to the image root; with it, frames that
            are not there as pictures are read from the video file.
        image_root: where pictures and video files are: needed for a ``*``, and for sizes that the
            annotations don't state.
        size: (height, width) of frames, in pixels, for videos of which nothing else tells it.
        fill_gaps: also list the frames between those of a task with a frame step, and after the
            last, as references.
        key_frames_only: the truth is known only in frames with a box that was drawn by hand.
        train_every: every how many annotated frames one is a key frame in training.
    """

    classes: Sequence[str] | None = None
    frames: str | None = None
    clips: str | None = None
    image_root: str | None = None
    size: tuple[int, int] | None = None
    fill_gaps: bool = False
    key_frames_only: bool = False
    train_every: int = 1

    def __post_init__(self) -> None:
        if self.frames is not None:
            first, second = (_fill_in(self.frames, "v", "v.mp4", n, n) for n in (0, 1))
            if first == second and "*" not in self.frames:
                raise ConfigError(
                    f"--frames {self.frames!r} gives all frames one name; put {{frame:06d}}, "
                    "{number:06d}, {index:06d} or * into it"
                )
        if self.clips is not None:
            name = _fill_in(self.clips, "v", "v.mp4", 0, 0)
            if not is_video_file(name):
                raise ConfigError(
                    f"--clips {self.clips!r} does not end like a video file; write "
                    "'{video}.mp4', say"
                )
        if self.train_every < 1:
            raise ConfigError(f"--train-every {self.train_every}: it must be at least 1")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ConfigError("--classes names a class twice; name each once")


@dataclass
class Counts:
    """What went into a JSON.

    Attributes:
        videos, images, annotated, objects, tracks: how many it holds.
        without_objects: annotated images without an object.
        ignored: objects with ``iscrowd`` 1, part of ``objects``.
        noted: what was left out or altered, by kind.
    """

    videos: int = 0
    images: int = 0
    annotated: int = 0
    objects: int = 0
    tracks: int = 0
    without_objects: int = 0
    ignored: int = 0
    noted: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [
            f"{self.videos} videos",
            f"{self.images} images ({self.annotated} annotated)",
            f"{self.objects} objects of {self.tracks} tracks",
            f"{self.without_objects} annotated images without objects",
        ]
        if self.ignored:
            parts.append(f"{self.ignored} objects to ignore (iscrowd)")
        parts += [f"{count} {kind}" for kind, count in self.noted.items() if count]
        return ", ".join(parts)


def build_coco_vid(
    videos: Sequence[AnnotatedVideo],
    labels: Sequence[str],
    options: ConversionOptions,
    counts: Counts,
) -> Json:
    """Make the CocoVID JSON of some videos.

    Every frame of ``frames`` is annotated unless its truth is unknown: one without a box is a frame
    without objects. Boxes are cut at the picture's border, since no detection reaches over it, and
    left out where nothing remains. Boxes on frames that are not annotated are left out; with
    ``key_frames_only`` the others carry the ``motion_iou`` that all boxes of their track give.

    Args:
        videos: the videos, each under a name of its own.
        labels: all class names of the annotations.
        options: the user's choices.
        counts: what goes into the JSON is added to it.

    Raises:
        DataError: a class of ``options.classes`` is not in ``labels``, no box is of any class, the
            size of some frames is unknown, or pictures that should be there are not.
    """
    classes = list(options.classes if options.classes is not None else dict.fromkeys(labels))
    for name in classes:
        if name not in labels:
            raise DataError(
                f"--classes: no label {name!r} in the annotations, which have "
                f"{', '.join(dict.fromkeys(labels)) or 'none'}; correct the name"
            )
    data: Json = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        "videos": [],
        "images": [],
        "annotations": [],
    }
    category_of = {name: i for i, name in enumerate(classes, 1)}
    for video in videos:
        _add_video(data, video, category_of, options, counts)
    if not any(not annotation["iscrowd"] for annotation in data["annotations"]):
        raise DataError(
            f"none of the {len(videos)} video(s) has a box of a class ({', '.join(classes)}) in an "
            "annotated frame; check the export, and --classes if given"
        )
    return data


def split_videos(
    data: Json, names: Collection[str] | None = None, fraction: float = 0.2
) -> tuple[Json, Json]:
    """Split a CocoVID JSON by video: for training and for validation, with the same categories.

    Args:
        data: what :func:`build_coco_vid` made.
        names: the videos for validation; by default some, spread evenly.
        fraction: without names, the share of videos for validation, in (0, 1). At least one video
            goes to each side.

    Raises:
        DataError: a name is no video's, or a side would have no object.
    """
    all_names = [video["name"] for video in data["videos"]]
    if names is None:
        if len(all_names) < 2:
            raise DataError("a split needs at least two videos, and there is one; add another")
        count = min(max(round(fraction * len(all_names)), 1), len(all_names) - 1)
        # Spread evenly, as neighbours in a list are often alike.
        names = [all_names[int((i + 0.5) * len(all_names) / count)] for i in range(count)]
    for name in names:
        if name not in all_names:
            raise DataError(
                f"--val-videos: no video is called {name!r}; there are {', '.join(all_names)}"
            )
    for_val = {video["id"] for video in data["videos"] if video["name"] in names}
    parts = []
    for side, is_val in (("training", False), ("validation", True)):
        part = {"categories": data["categories"]}
        part["videos"] = [v for v in data["videos"] if (v["id"] in for_val) == is_val]
        for key in ("images", "annotations"):
            part[key] = [r for r in data[key] if (r["video_id"] in for_val) == is_val]
        if all(annotation["iscrowd"] for annotation in part["annotations"]):
            raise DataError(
                f"the {side} videos ({', '.join(v['name'] for v in part['videos']) or 'none'}) "
                "have no object; choose others with --val-videos"
            )
        parts.append(part)
    return parts[0], parts[1]


def unique_names(videos: Sequence[tuple[str, str]], remedy: str) -> None:
    """Check that videos, given as (name, where from), have names of their own.

    Raises:
        DataError: two share one; the message ends with the remedy.
    """
    seen: dict[str, str] = {}
    for name, where in videos:
        if name in seen:
            raise DataError(f"two videos are called {name!r} ({seen[name]} and {where}); {remedy}")
        seen[name] = where


def frame_name(video: AnnotatedVideo, pattern: str, frame: int, index: int) -> str:
    """Fill in a pattern of :class:`ConversionOptions`.

    Raises:
        DataError: it needs the video file's name, which is not known.
        ConfigError: it has an unknown field.
    """
    if video.source is None and "{source" in pattern:
        raise DataError(
            f"video {video.name}: its annotations don't name its video file, so {pattern!r} can't "
            "be filled in; use {video}, as in '{video}.mp4'"
        )
    return _fill_in(pattern, video.name, video.source or "", frame, index)


def _add_video(
    data: Json,
    video: AnnotatedVideo,
    category_of: dict[str, int],
    options: ConversionOptions,
    counts: Counts,
) -> None:
    frames = video.frames
    if options.fill_gaps:
        first, last = frames[0], max(frames[-1], video.last_frame or 0)
        check_length(f"video {video.name}", last + 1 - first)
        frames = range(first, last + 1)
    check_length(f"video {video.name}", len(frames))
    clip = None
    if options.clips is not None:
        clip = frame_name(video, options.clips, 0, 0)
    image_root = options.image_root if options.image_root is not None else video.image_root
    file_names = _file_names(video, frames, options, clip, image_root)
    height, width = size = (
        video.size
        or _measured_size(file_names[0], clip, image_root)
        or options.size
        or _raise_no_size(video.name)
    )
    if not all(map(is_size, size)):
        raise DataError(f"video {video.name}: no frame has {width}x{height} pixels; correct it")
    record: Json = {"id": len(data["videos"]) + 1, "name": video.name}
    if clip is not None:
        record["file"] = clip
    data["videos"].append(record)
    counts.videos += 1

    known = _known_frames(video, options)
    boxes_of = _kept_boxes(video, category_of, (height, width), counts)
    motion = _motion_ious(boxes_of, frames) if options.key_frames_only else {}
    num_annotated = 0
    instance_of: dict[Hashable, int] = {}
    for frame_id, (frame, file_name) in enumerate(zip(frames, file_names, strict=True)):
        image: Json = {
            "id": len(data["images"]) + 1,
            "video_id": record["id"],
            "frame_id": frame_id,
            "file_name": file_name,
            "width": width,
            "height": height,
            "annotated": frame in known,
        }
        if options.train_every > 1:
            image["is_vid_train_frame"] = (
                frame in known and num_annotated % options.train_every == 0
            )
        data["images"].append(image)
        boxes = boxes_of.get(frame, [])
        counts.images += 1
        if frame not in known:
            counts.noted["objects left out on images that are not annotated"] += len(boxes)
            continue
        num_annotated += 1
        counts.annotated += 1
        counts.without_objects += not boxes
        for position, box in enumerate(boxes):
            annotation: Json = {
                "id": len(data["annotations"]) + 1,
                "image_id": image["id"],
                "video_id": record["id"],
                "category_id": category_of[box.label],
                "bbox": list(box.bbox),
                "area": round(box.bbox[2] * box.bbox[3], _DIGITS),
                "iscrowd": int(box.ignored),
                "occluded": box.occluded,
            }
            if box.track is not None:
                if box.track not in instance_of:
                    counts.tracks += 1
                    instance_of[box.track] = counts.tracks
                annotation["instance_id"] = instance_of[box.track]
            if (frame, position) in motion:
                annotation["motion_iou"] = motion[frame, position]
            data["annotations"].append(annotation)
            counts.objects += 1
            counts.ignored += box.ignored


def _known_frames(video: AnnotatedVideo, options: ConversionOptions) -> set[int]:
    known = set(video.frames) - video.unknown
    if options.key_frames_only:
        if video.key_frames is None:
            raise DataError(
                f"video {video.name}: its annotations don't tell boxes that were drawn from "
                "interpolated ones; leave --key-frames-only out"
            )
        known &= video.key_frames
    return known


def _kept_boxes(
    video: AnnotatedVideo, category_of: dict[str, int], size: tuple[int, int], counts: Counts
) -> dict[int, list[ObjectBox]]:
    """Boxes of the classes, inside the picture, by frame."""
    height, width = size
    kept: dict[int, list[ObjectBox]] = defaultdict(list)
    for box in video.boxes:
        if box.label not in category_of:
            counts.noted["objects of other classes left out"] += 1
            continue
        x, y, w, h = box.bbox
        x1, y1 = max(x, 0.0), max(y, 0.0)
        x2, y2 = min(x + w, float(width)), min(y + h, float(height))
        # Compared as they are written: CVAT's 10.10 and 0.20 differ by 9.899999999999999.
        inside = tuple(round(v, _DIGITS) for v in (x1, y1, x2 - x1, y2 - y1))
        if inside[2] <= 0 or inside[3] <= 0:
            counts.noted["objects without area inside the picture left out"] += 1
            continue
        if inside != tuple(round(v, _DIGITS) for v in box.bbox):
            counts.noted["objects cut at the picture's border"] += 1
        kept[box.frame].append(box._replace(bbox=inside))
    return kept


def _motion_ious(
    boxes_of: dict[int, list[ObjectBox]], frames: range
) -> dict[tuple[int, int], float]:
    """Motion IoU of each tracked box, by frame and position in it."""
    number_of: dict[Hashable, int] = {}
    keys, rows = [], []
    for frame, boxes in boxes_of.items():
        for position, box in enumerate(boxes):
            if box.track is not None:
                x, y, w, h = box.bbox
                track = number_of.setdefault(box.track, len(number_of))
                keys.append((frame, position))
                rows.append((track, frames.index(frame), x, y, x + w, y + h))
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    values = motion_iou_from_tracks(
        np.zeros(len(table)), table[:, 0], table[:, 1], table[:, 2:]
    ).tolist()
    return dict(zip(keys, (round(value, 6) for value in values), strict=True))


def _file_names(
    video: AnnotatedVideo,
    frames: range,
    options: ConversionOptions,
    clip: str | None,
    image_root: str | None,
) -> list[str]:
    if clip is not None and frames != range(len(frames)):
        # A frame's position in the JSON is not its number in the video file: say the number.
        return [f"{clip}#{frame}" for frame in frames]
    pattern = options.frames or video.pictures
    if "*" in pattern:
        return _listed(video, frames, pattern, image_root)
    return [frame_name(video, pattern, frame, index) for index, frame in enumerate(frames)]


def _listed(
    video: AnnotatedVideo, frames: range, pattern: str, image_root: str | None
) -> list[str]:
    """The pictures that a pattern with a ``*`` finds, one a frame."""
    if image_root is None:
        raise DataError(
            f"--frames {pattern!r} has a *, so the pictures are looked for; give --image-root"
        )
    escaped = replace(
        video, name=glob.escape(video.name), source=video.source and glob.escape(video.source)
    )
    wanted = frame_name(escaped, pattern, 0, 0)
    found = sorted(glob.glob(wanted, root_dir=image_root), key=natural_key)
    if len(found) == len(frames):
        return [file.replace(os.sep, "/") for file in found]
    if len(found) > frames[-1]:
        return [found[frame].replace(os.sep, "/") for frame in frames]
    raise DataError(
        f"video {video.name}: {len(found)} pictures are like {join_image_root(image_root, wanted)},"
        f" but the annotations are of {len(frames)} frames, the last being number {frames[-1]} "
        "(from 0); add the missing ones or correct --frames or --image-root"
    )


def _fill_in(pattern: str, video: str, source: str, frame: int, index: int) -> str:
    try:
        return pattern.format(
            video=video, source=source, frame=frame, number=frame + 1, index=index
        )
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{pattern!r}: {error} is not understood; a pattern may have {{video}}, {{source}}, "
            "{frame}, {number} and {index}, numbers with digits as in {frame:06d}"
        ) from None


def _measured_size(
    file_name: str, clip: str | None, image_root: str | None
) -> tuple[int, int] | None:
    if image_root is None:
        return None
    picture = join_image_root(image_root, file_name)
    if os.path.isfile(picture):
        height, width = read_frame(picture).shape[:2]
        return height, width
    if clip is not None and os.path.isfile(join_image_root(image_root, clip)):
        reader = VideoFrameReader(join_image_root(image_root, clip))
        return reader.height, reader.width
    return None


def _raise_no_size(name: str) -> tuple[int, int]:
    raise DataError(
        f"video {name}: nothing tells the size of its frames; give --image-root where its first "
        "picture or its video file is, or --size WIDTHxHEIGHT"
    )
