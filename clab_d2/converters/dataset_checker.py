"""Everything wrong with a dataset, found before a training finds it.

The loader stops at the first contradiction; the check goes on and counts each kind, so that a
dataset is mended in one go.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from clab_d2.data.coco_json import NO_VIDEOS, has_videos, read_coco_json
from clab_d2.data.frame_files import FrameFiles, first_out_of_order
from clab_d2.data.frames import read_frame
from clab_d2.data.json_values import (
    is_box,
    is_file_name,
    is_flag,
    is_integer,
    is_number,
    is_shots,
    is_size,
)
from clab_d2.data.video_frames import VideoFrameReader, split_frame_name
from clab_d2.data.video_table import join_image_root
from clab_d2.errors import DataError, one_line

Json = dict[str, Any]

__all__ = ["DatasetReport", "Problem", "check_dataset"]

# Boxes reach this far over the border by rounding alone.
_TOLERANCE = 1.0

# Longer values in a place are cut off.
_MAX_PLACE = 300


@dataclass
class Problem:
    """One kind of fault.

    Attributes:
        kind: what is wrong, in words.
        is_error: False for what is odd but harms neither training nor evaluation.
        count: how often.
        examples: the first few places.
    """

    kind: str
    is_error: bool
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        level = "error" if self.is_error else "warning"
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{level}: {self.kind}: {self.count} ({', '.join(self.examples)}{more})"


@dataclass
class DatasetReport:
    """What a dataset holds and what is wrong with it.

    Attributes:
        num_videos, num_images, num_annotations: sizes; a still counts as an image only.
        num_frames_read: frames decoded by the check.
        problems: each kind found, errors first.
    """

    num_videos: int
    num_images: int
    num_annotations: int
    num_frames_read: int
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        """Whether there is no error (there may be warnings)."""
        return not any(problem.is_error for problem in self.problems)

    def lines(self) -> list[str]:
        """The report as text: a line on the content, and one for each kind of fault."""
        head = (
            f"{self.num_videos} videos, {self.num_images} images, "
            f"{self.num_annotations} annotations"
        )
        if self.num_frames_read:
            head += f", {self.num_frames_read} frames read"
        return [head, *map(str, self.problems)] if self.problems else [head, "no problems found"]


class _Findings:
    """Collects faults by kind, with the first few places of each."""

    def __init__(self, max_examples: int) -> None:
        self._max_examples = max_examples
        self._problems: dict[str, Problem] = {}

    def error(self, kind: str, place: object) -> None:
        self._add(kind, place, is_error=True)

    def warn(self, kind: str, place: object) -> None:
        self._add(kind, place, is_error=False)

    def _add(self, kind: str, place: object, is_error: bool) -> None:
        problem = self._problems.setdefault(kind, Problem(kind, is_error))
        problem.count += 1
        if len(problem.examples) < self._max_examples:
            text = one_line(str(place))
            problem.examples.append(text if len(text) <= _MAX_PLACE else f"{text[:_MAX_PLACE]}...")

    def problems(self) -> list[Problem]:
        return sorted(self._problems.values(), key=lambda problem: not problem.is_error)


def check_dataset(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    frames: bool = False,
    workers: int | None = None,
    classes: Sequence[str] | None = None,
    max_examples: int = 3,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> DatasetReport:
    """Check a CocoVID (or COCO) JSON, the presence of its files, and on request every frame.

    Args:
        json_file: the annotations.
        image_root: folder that file names are relative to, or a single video's file.
        frames: also decode every frame, and compare its size with the JSON's.
        workers: frames read at a time; default one a core.
        classes: the classes that the JSON's categories must be among; None admits any.
        max_examples: places kept of each kind of fault.
        progress: wraps the iteration over frames, given their number (tqdm, say).

    Raises:
        DataError: the JSON is missing, cut off or not COCO, or the image root can't be the
            dataset's, so that nothing can be checked.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    data = read_coco_json(json_file)
    findings = _Findings(max_examples)
    categories = _check_categories(data["categories"], classes, findings)
    images = _check_images(data, findings)
    _check_annotations(data["annotations"], images, categories, findings)
    _check_videos(data, findings)
    if not has_videos(data):
        findings.warn(NO_VIDEOS, f"all {len(data['images'])} images")
    present = _check_files(_locate_frames(data, images, image_root, findings), findings)
    num_read = 0
    if frames:
        num_read = _check_frames(present, workers, progress, findings)
    return DatasetReport(
        num_videos=len(data.get("videos", [])),
        num_images=len(data["images"]),
        num_annotations=len(data["annotations"]),
        num_frames_read=num_read,
        problems=findings.problems(),
    )


def _check_categories(
    categories: list[Any], classes: Sequence[str] | None, findings: _Findings
) -> set[int]:
    ids: set[int] = set()
    names: set[str] = set()
    for position, category in enumerate(categories):
        if not _has(category, "id", int) or not _has(category, "name", str):
            findings.error("categories without an integer id and a name", f"number {position}")
            continue
        if category["id"] in ids or category["name"] in names:
            findings.error("categories that share an id or a name", category["name"])
        if classes is not None and category["name"] not in classes:
            findings.error("categories that are no class of the dataset", category["name"])
        ids.add(category["id"])
        names.add(category["name"])
    if not categories:
        findings.error("no categories", "the list is empty")
    return ids


def _check_images(data: Json, findings: _Findings) -> dict[int, Json]:
    """Images by id: those with all that a frame needs."""
    video_ids = {v["id"] for v in data.get("videos", []) if _has(v, "id", int)}
    images: dict[int, Json] = {}
    for position, image in enumerate(data["images"]):
        missing = [
            key
            for key, kind in (("id", int), ("file_name", str), ("height", int), ("width", int))
            if not _has(image, key, kind)
        ]
        if missing:
            where = image["id"] if _has(image, "id", int) else f"number {position}"
            findings.error("images that lack a key", f"image {where}: {', '.join(missing)}")
            continue
        place = f"image {image['id']} {image['file_name']}"
        if image["id"] in images:
            findings.error("images that share an id", place)
        if not is_size(image["height"]) or not is_size(image["width"]):
            findings.error("images without a size", place)
        if not is_file_name(image["file_name"]):
            findings.error("names that no file can have", place)
            continue
        video_id = image.get("video_id")
        if video_id is not None and (not is_integer(video_id) or video_id not in video_ids):
            findings.error('images of a video that "videos" does not list', place)
        images[image["id"]] = image
    return images


def _check_videos(data: Json, findings: _Findings) -> None:
    names: dict[int, str] = {}
    shots: dict[int, Any] = {}
    for position, video in enumerate(data.get("videos", [])):
        if not _has(video, "id", int):
            findings.error("videos without an integer id", f"number {position}")
            continue
        if video["id"] in names:
            findings.error("videos that share an id", video["id"])
        file = video.get("file")
        if file is not None and not (isinstance(file, str) and is_file_name(file)):
            findings.error('videos whose "file" is no name', f"{video['id']}: {video['file']}")
        names[video["id"]] = str(video.get("name") or video["id"])
        if video.get("shots") is not None:
            shots[video["id"]] = video["shots"]
    frames: dict[int, list[Json]] = defaultdict(list)
    for image in data["images"]:
        if isinstance(image, dict) and _has(image, "video_id", int):
            frames[image["video_id"]].append(image)
    for video_id, name in names.items():
        images = frames.get(video_id, [])
        if not images:
            findings.error("videos without a frame", name)
            continue
        _check_frame_numbers(name, images, findings)
        if video_id in shots and not is_shots(shots[video_id], len(images)):
            findings.error("videos whose shots don't rise from 0 within the video", name)
        sizes = [(image.get("width"), image.get("height")) for image in images]
        if any(size != sizes[0] for size in sizes):
            findings.warn("videos whose size changes", name)


def _check_frame_numbers(video: str, images: list[Json], findings: _Findings) -> None:
    numbers = Counter()
    for image in images:
        if not _has(image, "frame_id", int) or image["frame_id"] < 0:
            findings.error("frames without a number from 0", f"{video}: {image.get('file_name')}")
        else:
            numbers[image["frame_id"]] += 1
    for number in sorted(n for n, count in numbers.items() if count > 1):
        findings.error("duplicate frame numbers", f"{video} frame {number}")
    # A gap at a time, so that a stray number of a billion is one finding and no long loop.
    expected = 0
    for number in sorted(numbers):
        if number > expected:
            gap = f"{expected}" if number == expected + 1 else f"{expected} to {number - 1}"
            findings.error("missing frame numbers", f"{video} frame {gap}")
        expected = number + 1


def _check_annotations(
    annotations: list[Any], images: dict[int, Json], categories: set[int], findings: _Findings
) -> None:
    ids: set[Any] = set()
    in_frame: set[tuple[int, Any]] = set()
    class_of_track: dict[tuple[Any, Any], int] = {}
    tracks_missing = any_track = 0
    for position, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            findings.error("annotations that are no records", f"number {position}")
            continue
        identity = annotation.get("id", f"number {position}")
        place = f"annotation {identity}"
        if "id" in annotation and isinstance(identity, int | str):
            if identity in ids:
                findings.error("annotations that share an id", identity)
            ids.add(identity)
        category = annotation.get("category_id")
        if not is_integer(category) or category not in categories:
            findings.error("annotations of an unknown class", f"{place}: category {category}")
        image_id = annotation.get("image_id")
        image = images.get(image_id) if is_integer(image_id) else None
        if image is None:
            findings.error("annotations of an unknown image", f"{place}: image {image_id}")
            continue
        place += f" on {image['file_name']}"
        if image.get("annotated") is False:
            findings.warn('annotations on frames marked "annotated": false', place)
        _check_box(annotation.get("bbox"), image, place, findings)
        for key in ("area", "motion_iou"):
            if annotation.get(key) is not None and not is_number(annotation[key]):
                findings.error(f'"{key}" that is no number', f"{place}: {annotation[key]}")
        if not is_flag(annotation.get("iscrowd", 0)):
            findings.error('"iscrowd" that is neither 0 nor 1', f"{place}: {annotation['iscrowd']}")
        track = annotation.get("instance_id")
        if track is not None and not is_integer(track):
            findings.error("instance ids that are no integer of 64 bits", f"{place}: {track}")
        if not _has(image, "video_id", int):
            continue
        if not is_integer(track) or track < 0:  # -1 says "unknown", as missing does
            tracks_missing += 1
            continue
        any_track += 1
        if (image_id, track) in in_frame:
            findings.error("instances twice in one frame", f"{place}: instance {track}")
        in_frame.add((image_id, track))
        known = class_of_track.setdefault((image["video_id"], track), category)
        if known != category:
            findings.warn("instances that change their class", f"{place}: instance {track}")
    if tracks_missing and any_track:
        findings.warn("some annotations have no instance_id", f"{tracks_missing} of them")
    elif tracks_missing:
        findings.warn("no instance_id: slow, medium, fast unknown", f"{tracks_missing} annotations")
    usable = [image for image in images.values() if image.get("annotated", True)]
    if not usable or not annotations:
        findings.error("no annotated frame", "nothing to learn from, nothing to measure")
    elif any("is_vid_train_frame" in i for i in images.values()) and not any(
        i.get("is_vid_train_frame") for i in usable
    ):
        findings.warn("no frame to train on: is_vid_train_frame is never true", "all images")


def _check_box(bbox: Any, image: Json, place: str, findings: _Findings) -> None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        findings.error("boxes that are not four numbers", f"{place}: {bbox}")
        return
    x, y, width, height = bbox
    if not is_box(bbox):
        findings.error("boxes of negative size", f"{place}: {bbox}")
        return
    if width == 0 or height == 0:
        findings.error("boxes of zero area", f"{place}: {bbox}")
    beyond = max(-x, -y, x + width - image["width"], y + height - image["height"])
    if beyond > _TOLERANCE:
        size = f"{image['width']}x{image['height']}"
        findings.error("boxes outside the image", f"{place}: {bbox} in {size}")


def _locate_frames(
    data: Json, images: dict[int, Json], image_root: str, findings: _Findings
) -> list[tuple[str, Json]]:
    """(file, image) of each frame, video by video: as the loader finds them, see FrameFiles."""
    videos = {v["id"]: v for v in data.get("videos", []) if _has(v, "id", int)}
    frames: dict[int, list[Json]] = {video_id: [] for video_id in videos}
    stills: list[Json] = []
    for image in images.values():
        of_video = frames.get(image["video_id"]) if _has(image, "video_id", int) else None
        numbered = _has(image, "frame_id", int)
        (of_video if of_video is not None and numbered else stills).append(image)
    files = FrameFiles(image_root, sum(map(bool, frames.values())) + len(stills))
    located: list[tuple[str, Json]] = []
    for video_id, of_video in frames.items():
        video = videos[video_id]
        of_video.sort(key=lambda image: image["frame_id"])
        file = video.get("file")
        pictures = [image["file_name"] for image in of_video]
        place = first_out_of_order(pictures)
        if place is not None:
            wrong = f"{pictures[place]} after {pictures[place - 1]}"
            findings.warn(
                "videos numbered in another order than their file names",
                f"{video.get('name') or video_id}: {wrong}",
            )
        names = pictures
        unfound = len(files.not_found)
        if pictures:
            try:
                names = files.names(
                    str(video.get("name") or ""),
                    file if _has(video, "file", str) and is_file_name(file) else None,
                    pictures,
                    [image["frame_id"] for image in of_video],
                )
            except DataError as error:
                findings.error("videos whose file is not clear", error)
        if len(files.not_found) > unfound:
            findings.error("videos without pictures or file", files.not_found[-1])
        located += zip(names, of_video, strict=True)
    located += [(image["file_name"], image) for image in stills]
    return [(join_image_root(files.root, name), image) for name, image in located]


def _check_files(
    frames: Iterable[tuple[str, Json]], findings: _Findings
) -> list[tuple[str, Json]]:
    """Those of the frames, (file, image), whose file is there."""
    there: dict[str, bool] = {}  # a video file is asked for once, not once a frame
    present = []
    for name, image in frames:
        video = split_frame_name(name)
        file = video[0] if video is not None and not os.path.exists(name) else name
        if file not in there:
            there[file] = os.path.isfile(file)
            if not there[file]:
                findings.error("missing files", file)
            elif os.path.getsize(file) == 0:
                findings.error("empty files", file)
                there[file] = False
        if there[file]:
            present.append((name, image))
    return present


# (what is wrong, where), or None for a good frame
_Verdict = tuple[str, str] | None


def _check_frames(
    frames: Sequence[tuple[str, Json]],
    workers: int | None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None,
    findings: _Findings,
) -> int:
    verdicts = _frame_verdicts(frames, max(1, workers or os.cpu_count() or 1))
    for verdict in progress(verdicts, len(frames)) if progress else verdicts:
        if verdict is not None:
            findings.error(*verdict)
    return len(frames)


def _frame_verdicts(frames: Sequence[tuple[str, Json]], workers: int) -> Iterator[_Verdict]:
    """A verdict a frame, in order. Decoders let go of the interpreter, so threads do."""
    with ThreadPoolExecutor(workers) as pool:
        # A few pieces ahead of what is consumed, so that a million frames queue up nothing.
        pending: list[Any] = []
        for piece in _pieces(frames):
            pending.append(pool.submit(_read_piece, piece))
            if len(pending) >= 2 * workers:
                yield from pending.pop(0).result()
        for future in pending:
            yield from future.result()


def _pieces(frames: Sequence[tuple[str, Json]], size: int = 32) -> Iterator[list[tuple[str, Json]]]:
    """Runs of frames for one worker; a video file's frames stay together, to decode in order."""

    def video_of(frame: tuple[str, Json]) -> str:
        parts = split_frame_name(frame[0])
        return parts[0] if parts else ""

    for video, group in groupby(frames, key=video_of):
        run = list(group)
        if video:
            yield run
            continue
        for start in range(0, len(run), size):
            yield run[start : start + size]


def _read_piece(frames: list[tuple[str, Json]]) -> list[_Verdict]:
    verdicts: list[_Verdict] = []
    reader: VideoFrameReader | None = None
    for name, image in frames:
        try:
            parts = split_frame_name(name)
            if parts is not None and not os.path.exists(name):
                reader = reader or VideoFrameReader(parts[0])
                height, width = reader.read(parts[1]).shape[:2]
            else:
                height, width = read_frame(name).shape[:2]
        except IndexError as error:
            verdicts.append(("frames beyond their video's end", str(error)))
        except DataError as error:
            verdicts.append(("corrupt files", str(error)))
        else:
            wrong = (width, height) != (image["width"], image["height"])
            said = f"{name} is {width}x{height}, not {image['width']}x{image['height']}"
            verdicts.append(("sizes that contradict the JSON", said) if wrong else None)
    if reader is not None:
        reader.close()
    return verdicts


def _has(record: Any, key: str, kind: type) -> bool:
    value = record.get(key) if isinstance(record, dict) else None
    return is_integer(value) if kind is int else isinstance(value, kind)
