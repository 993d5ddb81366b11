"""CVAT's export "CVAT for video 1.1" -> CocoVID JSON.

What CVAT writes: the tracks of a task, a job or a whole project, each with a ``<box>`` for every
frame where the object is, those between key frames interpolated, and one with ``outside="1"`` in
the first frame where it no longer is. A frame's number is that of the video file:
``start_frame + k * step`` for the k-th frame of a task with a frame filter. In a project's export,
the numbers of a task moreover begin where those of the task before, in the same subset, end.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from clab_d2.converters.coco_vid_builder import (
    AnnotatedVideo,
    ConversionOptions,
    Counts,
    Json,
    ObjectBox,
    build_coco_vid,
    unique_names,
)
from clab_d2.converters.limits import check_length
from clab_d2.errors import DataError
from clab_d2.io import refuse_special_file

NAMES = ("source", "task", "file")

# Types of a CVAT label that can have boxes.
_BOX_TYPES = {"", "any", "rectangle", "bbox"}

_SHAPES = {"polygon", "polyline", "points", "ellipse", "cuboid", "skeleton", "mask"}


def convert_cvat(
    paths: Sequence[str | os.PathLike[str]],
    options: ConversionOptions | None = None,
    name_by: str = "source",
) -> tuple[Json, Counts]:
    """Convert exports "CVAT for video 1.1" to one CocoVID JSON.

    Args:
        paths: ``annotations.xml`` files, the zip files that CVAT writes, or folders with either.
        options: see :class:`ConversionOptions`.
        name_by: what a video is called after: its "source" file, the "task" or the exported
            "file". Where the export doesn't tell it (that of a job tells none), the next of these.

    Returns:
        The JSON and what went into it.

    Raises:
        DataError: an export is missing, damaged, contradicts itself or is of another format; or
            see :func:`build_coco_vid`.
    """
    options = options or ConversionOptions()
    counts = Counts()
    exports = [export for path in paths for export in _read_path(Path(path), name_by)]
    videos = [video for export in exports for video in export.videos]
    unique_names(
        [(video.name, export.where) for export in exports for video in export.videos],
        "name videos by another of --name-by source, task, file, or convert them apart",
    )
    for export in exports:
        counts.noted.update(export.noted)
    labels = list(dict.fromkeys(label for export in exports for label in export.labels))
    return build_coco_vid(videos, labels, options, counts), counts


@dataclass
class CvatExport:
    """What one ``annotations.xml`` holds.

    Attributes:
        where: the file, for messages.
        labels: names of the classes that may have boxes.
        videos: one a task (or job).
        noted: what was left out or altered, by kind.
    """

    where: str
    labels: list[str]
    videos: list[AnnotatedVideo]
    noted: Counter[str]


def read_cvat(stream: IO[bytes], where: str, stem: str, name_by: str = "source") -> CvatExport:
    """Read one ``annotations.xml``, track by track.

    A frame between two boxes of a track that has neither a box of this track nor the word that it
    is outside is one of unknown truth: CVAT writes no box on frames that were deleted, and other
    tools write key frames only.

    Args:
        stream: the open file.
        where: what messages call it.
        stem: what its videos are called if nothing else names them.
        name_by: see :func:`convert_cvat`.

    Raises:
        DataError: it is no whole XML, no export of this format, or contradicts itself.
    """
    try:
        meta, tracks = _read_tree(stream, where)
    except (ParseError, DefusedXmlException, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where}: not a whole CVAT file ({error}); export it again as 'CVAT for video 1.1'"
        ) from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise DataError(f"{where}: cannot be read ({error}); export it again") from None
    noted: Counter[str] = Counter()
    by_task: dict[str, list[_Track]] = {task.id: [] for task in meta.tasks}
    for track in tracks:
        if track.skipped is not None:
            noted[f"{track.skipped} tracks left out"] += 1
            continue
        noted["rotated boxes made upright"] += sum(b.rotated and not b.outside for b in track.boxes)
        by_task[_task_of(track, meta, where)].append(track)
    videos = [
        _to_video(task, by_task[task.id], _name(task, name_by, stem, len(meta.tasks)), where)
        for task in meta.tasks
    ]
    used = {box.label for video in videos for box in video.boxes}
    labels = [
        name for name, may_have_boxes in meta.labels.items() if may_have_boxes or name in used
    ]
    for label in used:
        if meta.labels and label not in meta.labels:
            raise DataError(
                f"{where}: a track is labelled {label!r}, which <labels> does not list; export it "
                "again"
            )
    return CvatExport(where, labels or sorted(used), videos, noted)


class _Box(NamedTuple):
    frame: int
    bbox: tuple[float, float, float, float]
    outside: bool
    occluded: bool
    keyframe: bool
    rotated: bool


@dataclass
class _Track:
    id: str
    label: str
    task_id: str | None
    boxes: list[_Box]
    skipped: str | None  # its kind, if it is no track of boxes


@dataclass
class _Task:
    """One video as <meta> describes it.

    ``frames`` are numbers in the video file, ``offset`` is what a project's export adds to them.
    """

    id: str
    name: str
    source: str | None
    size: tuple[int, int] | None
    frames: range
    last_frame: int
    subset: str
    deleted: set[int]
    offset: int = 0


@dataclass
class _Meta:
    tasks: list[_Task] = field(default_factory=list)
    labels: dict[str, bool] = field(default_factory=dict)  # name -> whether it may have boxes


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def _read_path(path: Path, name_by: str) -> Iterator[CvatExport]:
    """Yield the exports at a path: a file, or a folder of them."""
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in (".xml", ".zip"))
        if not inside:
            raise DataError(
                f"{path}: the folder holds no .xml or .zip; name the exports of 'CVAT for video "
                "1.1'"
            )
        for file in inside:
            yield from _read_path(file, name_by)
        return
    # annotations.xml is called like all others: its folder tells more.
    stem = path.stem
    if path.name == "annotations.xml":
        stem = path.absolute().parent.name or stem
    with _opened(path) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            yield read_cvat(file, str(path), stem, name_by)
            return
        with _opened_zip(file, path) as archive:
            members = [
                name
                for name in archive.namelist()
                if name.lower().endswith(".xml") and not name.startswith("__MACOSX/")
            ]
            if not members:
                raise DataError(
                    f"{path}: holds no annotations.xml; export it as 'CVAT for video 1.1'"
                )
            for name in members:
                try:
                    member = archive.open(name)
                except (RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
                    raise DataError(f"{path}: {name} cannot be read ({error})") from None
                with member:
                    yield read_cvat(member, f"{path}/{name}", stem, name_by)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    refuse_special_file(path)
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise DataError(f"{path}: no such export of CVAT; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        yield file


@contextmanager
def _opened_zip(file: IO[bytes], path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: a damaged zip file ({error}); export it again") from None
    with archive:
        yield archive


# ---------------------------------------------------------------------------------------------
# XML
# ---------------------------------------------------------------------------------------------


def _read_tree(stream: IO[bytes], where: str) -> tuple[_Meta, list[_Track]]:
    root = None
    meta: _Meta | None = None
    tracks = []
    for event, element in iterparse(stream, events=("start", "end")):
        if event == "start":
            if root is None:
                root = element
                if root.tag != "annotations":
                    raise DataError(
                        f"{where}: begins with <{root.tag}>, so it is no file of CVAT's; export "
                        "the task as 'CVAT for video 1.1'"
                    )
            elif element.tag == "image":
                raise DataError(
                    f"{where}: an export 'CVAT for images', which has no tracks; export the task "
                    "again as 'CVAT for video 1.1'"
                )
            elif element.tag == "track" and meta is None:
                raise DataError(f"{where}: no <meta> before the tracks; export it again")
        elif element.tag == "meta":
            meta = _read_meta(element, where)
            root.clear()
        elif element.tag == "track":
            tracks.append(_read_track(element, where))
            # A long task has millions of boxes: let go of the elements as they are read.
            root.clear()
    if meta is None:
        raise DataError(f"{where}: no <meta>, so no frame numbers; export it again")
    return meta, tracks


def _read_meta(element: Any, where: str) -> _Meta:
    project = element.find("project")
    if project is not None:
        head, found = project, project.findall("tasks/task")
    else:
        head = element.find("task")
        if head is None:
            head = element.find("job")
        found = [] if head is None else [head]
    if not found:
        raise DataError(
            f"{where}: <meta> has no <task>, <job> or <project>; export it again as 'CVAT for "
            "video 1.1'"
        )
    meta = _Meta([_read_task(task, element, where) for task in found])
    if len({task.id for task in meta.tasks}) < len(meta.tasks):
        raise DataError(f"{where}: two tasks have the same id; export it again")
    if project is not None:
        _set_offsets(meta.tasks)
    for label in head.iterfind("labels/label"):
        name = (label.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{where}: a <label> without a <name>; export it again")
        if not label.findtext("parent"):  # a point of a skeleton
            meta.labels[name] = (label.findtext("type") or "").strip() in _BOX_TYPES
    return meta


def _read_task(task: Any, meta: Any, where: str) -> _Task:
    identity = (task.findtext("id") or "").strip()
    where = f"{where}: <{task.tag}> {identity}".rstrip()
    count = _integer(task, "size", where)
    start = _integer(task, "start_frame", where, default=0)
    step_text = task.findtext("frame_filter") or ""
    match = re.search(r"step\s*=\s*(\d+)", step_text)
    step = int(match[1]) if match else 1
    if count < 1 or start < 0 or step < 1 or (step_text.strip() and not match):
        raise DataError(
            f"{where} has {count} frames from number {start} with frame filter "
            f"{step_text.strip()!r}; export it again"
        )
    check_length(where, count)
    size = task.find("original_size")
    if size is None:
        size = meta.find("original_size")  # of a job
    height_width = None
    if size is not None:
        height_width = _integer(size, "height", where), _integer(size, "width", where)
        if min(height_width) < 1:
            raise DataError(f"{where}: frames of {height_width[1]}x{height_width[0]} pixels")
    source = (task.findtext("source") or meta.findtext("source") or "").strip()
    # Deleted frames are counted as in CVAT: by position in the task, also in a job's export.
    first = 0
    if task.tag == "job":
        first = int(task.findtext("segments/segment/start") or 0)
    deleted_element = task.find("deleted_frames")
    deleted_text = "" if deleted_element is None else " ".join(deleted_element.itertext())
    return _Task(
        id=identity,
        name=(task.findtext("name") or "").strip(),
        source=PurePosixPath(source.replace("\\", "/")).name or None,
        size=height_width,
        frames=range(start, start + count * step, step),
        # The frame filter may end a few frames before the video does.
        last_frame=min(_integer(task, "stop_frame", where, default=0), start + count * step - 1),
        subset=(task.findtext("subset") or "").strip(),
        deleted={
            start + (int(number) - first) * step for number in re.findall(r"\d+", deleted_text)
        },
    )


def _set_offsets(tasks: list[_Task]) -> None:
    """Set what a project's export adds to the frame numbers of each task."""
    offset, subset = 0, None
    for task in tasks:
        if task.subset != subset:
            offset, subset = 0, task.subset
        task.offset = offset
        offset += task.frames.stop


def _read_track(element: Any, where: str) -> _Track:
    identity = element.get("id", "")
    where = f"{where}: track {identity}"
    label = element.get("label")
    if not label:
        raise DataError(f"{where} has no label; export it again")
    boxes = [_read_box(box, where) for box in element.iterfind("box")]
    kinds = [child.tag for child in element if child.tag in _SHAPES]
    return _Track(
        identity,
        label,
        element.get("task_id"),
        boxes,
        skipped=None if boxes else (kinds[0] if kinds else "empty"),
    )


def _read_box(box: Any, where: str) -> _Box:
    attributes = box.attrib
    try:
        frame = int(attributes["frame"])
        corners = [float(attributes[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
        rotation = float(attributes.get("rotation", 0))
        x1, y1, x2, y2 = corners
        bbox = upright_box((x1, y1, x2 - x1, y2 - y1), rotation)
        if not all(map(math.isfinite, (*corners, *bbox))):
            raise ValueError(f"corners {corners}, rotation {rotation}")
    except KeyError as error:
        raise DataError(f"{where}: a box has no {error.args[0]}; export it again") from None
    except ValueError as error:
        raise DataError(
            f"{where}: a box has no proper numbers ({error}); export it again"
        ) from None
    if x2 < x1 or y2 < y1:
        raise DataError(
            f"{where}, frame {frame}: a box with its right or lower side first; export it again"
        )
    return _Box(
        frame,
        bbox,
        outside=attributes.get("outside") == "1",
        occluded=attributes.get("occluded") == "1",
        keyframe=attributes.get("keyframe", "1") == "1",
        rotated=rotation % 360 != 0,
    )


def upright_box(
    bbox: tuple[float, float, float, float], degrees: float
) -> tuple[float, float, float, float]:
    """The tight upright box (x, y, width, height) round one turned about its centre."""
    x, y, width, height = bbox
    if degrees % 360 == 0:
        return bbox
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    new_width = width * cosine + height * sine
    new_height = width * sine + height * cosine
    return (x + (width - new_width) / 2, y + (height - new_height) / 2, new_width, new_height)


def _integer(element: Any, name: str, where: str, default: int | None = None) -> int:
    text = element.findtext(name)
    if (text is None or not text.strip()) and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise DataError(
            f"{where}: <{name}> is {text and text[:100]!r}, not a number; export it again as 'CVAT "
            "for video 1.1'"
        ) from None


# ---------------------------------------------------------------------------------------------
# Tracks -> videos
# ---------------------------------------------------------------------------------------------


def _task_of(track: _Track, meta: _Meta, where: str) -> str:
    ids = [task.id for task in meta.tasks]
    if track.task_id is None and len(ids) == 1:
        return ids[0]
    if track.task_id not in ids:
        raise DataError(
            f"{where}: track {track.id} is of task {track.task_id}, but <meta> has "
            f"{', '.join(ids)}; export it again"
        )
    return track.task_id


def _name(task: _Task, name_by: str, stem: str, num_tasks: int) -> str:
    file_stem = stem if num_tasks == 1 else f"{stem}_{task.id}"
    candidates = {
        "source": PurePosixPath(task.source).stem if task.source else "",
        "task": task.name,
        "file": file_stem,
    }
    for kind in (name_by, *NAMES):
        # Part of file names: an export must not lead out of the image folder.
        name = re.sub(r"[/\\]", "_", candidates[kind])
        if name.strip(". "):
            return name
    return f"task_{task.id}"


def _to_video(task: _Task, tracks: list[_Track], name: str, where: str) -> AnnotatedVideo:
    offset = _find_offset(task, tracks, where)
    boxes: list[ObjectBox] = []
    unknown = set(task.deleted)
    key_frames: set[int] = set()
    for number, track in enumerate(tracks):
        # Several boxes of a track on a frame: the last one holds, as when CVAT reads them.
        by_frame = {box.frame - offset: box for box in track.boxes}
        last_seen = None
        for frame in sorted(by_frame):
            box = by_frame[frame]
            if last_seen is not None:
                # Frames between two boxes without a word on the object.
                end = min(frame, task.frames.stop)
                unknown.update(range(last_seen + task.frames.step, end, task.frames.step))
            last_seen = None if box.outside else frame
            if box.outside:
                continue
            boxes.append(ObjectBox(frame, track.label, number, box.bbox, box.occluded))
            if box.keyframe:
                key_frames.add(frame)
    return AnnotatedVideo(
        name=name,
        frames=task.frames,
        boxes=boxes,
        size=task.size,
        last_frame=task.last_frame,
        source=task.source,
        unknown=unknown & set(task.frames),
        key_frames=key_frames,
    )


def _find_offset(task: _Task, tracks: list[_Track], where: str) -> int:
    """What the export added to the task's frame numbers: a project's offset, or nothing."""
    # An object's end may be said to be in the frame after the last.
    seen = [(box.frame, track.id) for track in tracks for box in track.boxes if not box.outside]
    for offset in (task.offset, 0):
        if all(frame - offset in task.frames for frame, _ in seen):
            return offset
    frames = task.frames
    frame, track_id = next(pair for pair in seen if pair[0] - task.offset not in frames)
    raise DataError(
        f"{where}: track {track_id} has a box in frame {frame}, but the frames of task {task.id} "
        f"are {frames[0] + task.offset} to {frames[-1] + task.offset}"
        + (f", every {frames.step}" if frames.step > 1 else "")
        + "; export it again"
    )
