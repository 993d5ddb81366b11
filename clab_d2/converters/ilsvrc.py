"""ILSVRC2015's VID and DET annotations -> the JSON files that training and evaluation read.

The files equal those of MMTracking's converters, field by field and id by id, so that JSON made
with either serves both.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import IO, Any, NamedTuple
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from tqdm import tqdm

from clab_d2.converters.limits import MAX_FRAMES
from clab_d2.data.imagenet_vid import IMAGENET_VID_CLASSES, IMAGENET_VID_WNIDS
from clab_d2.errors import DataError
from clab_d2.io import atomic_write, refuse_special_file

logger = logging.getLogger(__name__)

Json = dict[str, Any]

VID_TRAIN_LIST = "VID_train_15frames.txt"
VID_VAL_LIST = "VID_val_videos.txt"
DET_LIST = "DET_train_30classes.txt"

# DET's other 170 classes go into one; the name is spelt as in MMTracking's files.
_OTHER_CLASS = "other_categeries"

_DET_FOLDERS = (
    "train/ILSVRC2013_train",
    *(f"train/ILSVRC2014_train_{part:04d}" for part in range(7)),
)

_CATEGORY_OF_WNID = {wnid: index + 1 for index, wnid in enumerate(IMAGENET_VID_WNIDS)}

# XML files that go to a process at once: enough to make the passing cheap.
_CHUNK = 256
_CHUNKS_AHEAD = 32


class XmlObject(NamedTuple):
    """One ``<object>``: its WordNet id, box in pixels and, in VID only, its track."""

    wnid: str
    box: tuple[int, int, int, int]  # xmin, ymin, xmax, ymax
    track_id: str | None
    occluded: bool
    generated: bool


class XmlFrame(NamedTuple):
    """What one annotation file says."""

    width: int
    height: int
    objects: tuple[XmlObject, ...]


@dataclass
class Counts:
    """What went into one JSON file.

    Attributes:
        videos, images, key_frames, annotations: how many it holds.
        without_objects: images without an object.
        unknown: objects of other classes (left out of VID, "other" in DET).
        unreadable: annotation files that could not be read.
    """

    videos: int = 0
    images: int = 0
    key_frames: int = 0
    annotations: int = 0
    without_objects: int = 0
    unknown: int = 0
    unreadable: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.videos} videos"] if self.videos else []
        parts += [
            f"{self.images} images",
            f"{self.key_frames} key frames for training",
            f"{self.annotations} objects",
            f"{self.without_objects} images without objects",
            f"{self.unknown} objects of other classes",
        ]
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable annotation files")
        return ", ".join(parts)


def convert(
    root: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    jobs: int | None = None,
    strict: bool = False,
    progress: bool = True,
) -> dict[str, Counts]:
    """Convert an ILSVRC tree (``Annotations/``, ``Lists/``) to CocoVID JSON files.

    Each file is written only when it is whole. A list that is not there leaves its file out. A
    VID frame whose annotation file can't be read stays in its video with ``"annotated": false``,
    so that frame numbers have no gap, with the size of its neighbours; a DET image is left out.

    Args:
        root: the tree.
        output_dir: where to write ``imagenet_vid_train.json``, ``imagenet_vid_val.json`` and
            ``imagenet_det_30plus1cls.json``.
        jobs: processes that read XML files; all cores by default.
        strict: stop at the first annotation file that can't be read.
        progress: show a progress bar.

    Returns:
        What went into each file that was written, by file name.

    Raises:
        DataError: no list is there, a list has a malformed line, or an annotation file can't be
            read and ``strict``.
    """
    root, output_dir = Path(root), Path(output_dir)
    outputs = {
        "imagenet_vid_train.json": (VID_TRAIN_LIST, _convert_vid_train),
        "imagenet_vid_val.json": (VID_VAL_LIST, _convert_vid_val),
        "imagenet_det_30plus1cls.json": (DET_LIST, _convert_det),
    }
    if not (root / "Annotations").is_dir():
        raise DataError(f"{root}: no folder Annotations/; --root must be the ILSVRC folder")
    lists = {list_name: root / "Lists" / list_name for list_name, _ in outputs.values()}
    if not any(path.is_file() for path in lists.values()):
        raise DataError(f"{root / 'Lists'}: holds none of {', '.join(lists)}; put one there")

    written = {}
    with _Reader(root, jobs, strict, progress) as reader:
        for output, (list_name, convert_one) in outputs.items():
            if not lists[list_name].is_file():
                logger.warning("%s: not there, so no %s", lists[list_name], output)
                continue
            counts = written[output] = Counts()
            convert_one(reader, output_dir / output, counts)
            logger.info("%s: %s", output_dir / output, counts)
    return written


def read_annotation(path: str | os.PathLike[str]) -> XmlFrame:
    """Read one annotation file of VID or DET.

    Raises:
        DataError: it is missing, no whole XML, or lacks an element.
    """
    refuse_special_file(path)
    try:
        tree = parse(path)
        size = tree.find("size")
        objects = tuple(_read_object(element) for element in tree.iterfind("object"))
        frame = XmlFrame(_integer(size, "width"), _integer(size, "height"), objects)
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; fetch it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise DataError(f"{path}: not a whole annotation file ({error}); fetch it again") from None
    if frame.width < 1 or frame.height < 1:
        raise DataError(f"{path}: image size {frame.width}x{frame.height}; fetch the file again")
    return frame


def _read_object(element: Any) -> XmlObject:
    box = element.find("bndbox")
    return XmlObject(
        wnid=_text(element, "name"),
        box=(
            _integer(box, "xmin"), _integer(box, "ymin"),
            _integer(box, "xmax"), _integer(box, "ymax"),
        ),
        track_id=element.findtext("trackid"),
        occluded=element.findtext("occluded") == "1",
        generated=element.findtext("generated") == "1",
    )


def _text(element: Any, name: str) -> str:
    text = element.findtext(name) if element is not None else None
    if not text:
        raise ValueError(f"no <{name}>")
    return text.strip()


def _integer(element: Any, name: str) -> int:
    return int(_text(element, name))


class _Reader:
    """Reads annotation files in parallel, in order, with a progress bar.

    Args:
        root: the ILSVRC tree.
        jobs, strict, progress: see :func:`convert`.
    """

    def __init__(self, root: Path, jobs: int | None, strict: bool, progress: bool) -> None:
        self.root = root
        self._strict = strict
        self._progress = progress
        jobs = jobs or os.cpu_count() or 1
        # A fork is there at once; elsewhere each process has all imports to do anew.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self._pool = context.Pool(jobs, initializer=_leave_signals_to_main) if jobs > 1 else None

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.terminate()

    def read(
        self, kind: str, names: Iterable[str], total: int, counts: Counts
    ) -> Iterator[XmlFrame | None]:
        """Yield what the files ``Annotations/<kind>/<name>.xml`` say; None for unreadable ones.

        Unreadable ones are added to ``counts``.
        """
        paths = (f"{self.root}/Annotations/{kind}/{name}.xml" for name in names)
        parallel = self._pool is not None and total > 2 * _CHUNK
        frames = self._read_in_parallel(paths) if parallel else map(_try_read, paths)
        bar = tqdm(frames, kind, total, unit=" files", disable=not self._progress)
        for frame in bar:
            if isinstance(frame, str):
                if self._strict:
                    raise DataError(frame)
                counts.unreadable.append(frame)
                bar.write(frame, file=sys.stderr)
                frame = None
            yield frame

    def _read_in_parallel(self, paths: Iterator[str]) -> Iterator[XmlFrame | str]:
        # A few chunks at a time: Pool.imap would take in all names, and all that is read.
        waiting: deque[AsyncResult[list[XmlFrame | str]]] = deque()
        while True:
            while len(waiting) < _CHUNKS_AHEAD and (chunk := list(islice(paths, _CHUNK))):
                waiting.append(self._pool.apply_async(_read_chunk, (chunk,)))
            if not waiting:
                return
            yield from waiting.popleft().get()


def _leave_signals_to_main() -> None:
    """Leave Ctrl-C to the main process, which ends this one, and let it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _read_chunk(paths: list[str]) -> list[XmlFrame | str]:
    return [_try_read(path) for path in paths]


def _try_read(path: str) -> XmlFrame | str:
    try:
        return read_annotation(path)
    except DataError as error:
        return str(error)


def _read_list(path: Path, num_fields: int) -> Iterator[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text ({error.reason}); fetch the list again") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < num_fields or not all(map(_is_count, fields[1:num_fields])):
            raise DataError(
                f"{path}: line {number} is {line[:200]!r}; it must be a name and {num_fields - 1} "
                f"number(s) up to {MAX_FRAMES}; fetch the list again"
            )
        yield fields


def _is_count(text: str) -> bool:
    # Short first: Python takes no number of thousands of digits.
    return text.isdecimal() and len(text) < 20 and int(text) <= MAX_FRAMES


class _CocoFile:
    """Writes a COCO file record by record, so that it need not fit into memory."""

    def __init__(self, images: IO[str], annotations: IO[str], counts: Counts) -> None:
        self._images, self._annotations, self._counts = images, annotations, counts

    @classmethod
    @contextmanager
    def create(cls, path: Path, counts: Counts, **head: list[Json]) -> Iterator[_CocoFile]:
        """Begin the file with the lists in ``head``; it appears once all is written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(path) as file,
            # Annotations come after all images; until then they wait in a file of no name.
            tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent) as spool,
        ):
            lists = "".join(f'"{key}": {json.dumps(value)}, ' for key, value in head.items())
            file.write("{" + lists + '"images": [')
            yield cls(file, spool, counts)
            file.write('], "annotations": [')
            spool.seek(0)
            shutil.copyfileobj(spool, file)
            file.write("]}")

    def add_image(self, image: Json) -> None:
        """Write an image, which has its id already."""
        self._images.write((", " if self._counts.images else "") + json.dumps(image))
        self._counts.images += 1

    def add_annotation(self, **fields: Any) -> None:
        """Write an annotation under the next id."""
        separator = ", " if self._counts.annotations else ""
        self._counts.annotations += 1
        record = {"id": self._counts.annotations, **fields}
        self._annotations.write(separator + json.dumps(record))


def _convert_vid_train(reader: _Reader, output: Path, counts: Counts) -> None:
    # Lines: video, 1, a key frame's number from 1, the video's length.
    lengths: dict[str, int] = {}
    key_frames: dict[str, list[int]] = {}
    for video, _, frame, length, *_ in _read_list(reader.root / "Lists" / VID_TRAIN_LIST, 4):
        lengths[video] = int(length)
        key_frames.setdefault(video, []).append(int(frame) - 1)
    _convert_vid(reader, output, counts, lengths, key_frames)


def _convert_vid_val(reader: _Reader, output: Path, counts: Counts) -> None:
    # Lines: video, 1, 0, the video's length.
    lines = _read_list(reader.root / "Lists" / VID_VAL_LIST, 4)
    lengths = {video: int(length) for video, _, _, length, *_ in lines}
    _convert_vid(reader, output, counts, lengths, {})


def _convert_vid(
    reader: _Reader,
    output: Path,
    counts: Counts,
    lengths: dict[str, int],
    key_frames: dict[str, list[int]],
) -> None:
    names = (f"{video}/{frame:06d}" for video, length in lengths.items() for frame in range(length))
    frames = reader.read("VID", names, sum(lengths.values()), counts)
    videos = [
        {"id": video_id, "name": video, "vid_train_frames": key_frames.get(video, [])}
        for video_id, video in enumerate(lengths, 1)
    ]
    counts.videos = len(videos)
    next_instance = 1
    with _CocoFile.create(output, counts, categories=_categories(), videos=videos) as file:
        for video in videos:
            length = lengths[video["name"]]
            in_video = list(islice(frames, length))
            sizes = _fill_gaps([frame and (frame.height, frame.width) for frame in in_video])
            if length and sizes is None:
                raise DataError(
                    f"{reader.root}/Annotations/VID/{video['name']}: none of its {length} "
                    "annotation files can be read; fetch them again, or take the video out of "
                    "the list"
                )
            is_key = set(video["vid_train_frames"])
            instance_of_track: dict[str | None, int] = {}
            for frame_id, frame in enumerate(in_video):
                image = {
                    "file_name": f"{video['name']}/{frame_id:06d}.JPEG",
                    "height": sizes[frame_id][0],
                    "width": sizes[frame_id][1],
                    "id": counts.images + 1,
                    "frame_id": frame_id,
                    "video_id": video["id"],
                    "is_vid_train_frame": frame is not None and frame_id in is_key,
                }
                if frame is None:
                    image["annotated"] = False
                file.add_image(image)
                counts.key_frames += image["is_vid_train_frame"]
                counts.without_objects += frame is not None and not frame.objects
                for item in frame.objects if frame is not None else ():
                    category = _CATEGORY_OF_WNID.get(item.wnid)
                    if category is None:
                        counts.unknown += 1
                        continue
                    if item.track_id not in instance_of_track:
                        instance_of_track[item.track_id] = next_instance
                        next_instance += 1
                    file.add_annotation(
                        video_id=video["id"],
                        image_id=image["id"],
                        category_id=category,
                        instance_id=instance_of_track[item.track_id],
                        **_box(item),
                        occluded=item.occluded,
                        generated=item.generated,
                    )
        next(frames, None)  # lets the progress bar end


def _fill_gaps(sizes: list[tuple[int, int] | None]) -> list[tuple[int, int]] | None:
    """Give frames without a size that of the last one before with a size, or the first one."""
    last = next((size for size in sizes if size is not None), None)
    if last is None:
        return None
    filled = []
    for size in sizes:
        last = size or last
        filled.append(last)
    return filled


def _convert_det(reader: _Reader, output: Path, counts: Counts) -> None:
    # Lines: image, 1. These come first, then all other images of DET's training set, by name.
    listed = [fields[0] for fields in _read_list(reader.root / "Lists" / DET_LIST, 1)]
    names = listed + list(_other_det_images(reader.root, set(listed)))
    categories = _categories()
    other = len(categories) + 1
    categories.append({"id": other, "name": _OTHER_CLASS, "encode_name": None})
    frames = reader.read("DET", names, len(names), counts)
    with _CocoFile.create(output, counts, categories=categories) as file:
        for position, (name, frame) in enumerate(zip(names, frames, strict=True)):
            if frame is None:
                continue
            image = {
                "file_name": f"{name}.JPEG",
                "height": frame.height,
                "width": frame.width,
                "id": counts.images + 1,
                "is_vid_train_frame": position < len(listed),
            }
            file.add_image(image)
            counts.key_frames += image["is_vid_train_frame"]
            counts.without_objects += not frame.objects
            for item in frame.objects:
                category = _CATEGORY_OF_WNID.get(item.wnid, other)
                counts.unknown += category == other
                file.add_annotation(image_id=image["id"], category_id=category, **_box(item))


def _other_det_images(root: Path, listed: set[str]) -> Iterator[str]:
    annotations = root / "Annotations" / "DET"
    for folder in _DET_FOLDERS:
        # ILSVRC2013's images lie in a folder a class, ILSVRC2014's directly in theirs.
        pattern = "*/*.xml" if folder == _DET_FOLDERS[0] else "*.xml"
        found = (annotations / folder).glob(pattern)
        for path in sorted(file.relative_to(annotations).as_posix() for file in found):
            name = path.removesuffix(".xml")
            if name not in listed:
                yield name


def _categories() -> list[Json]:
    pairs = zip(IMAGENET_VID_CLASSES, IMAGENET_VID_WNIDS, strict=True)
    return [
        {"id": index, "name": name, "encode_name": wnid}
        for index, (name, wnid) in enumerate(pairs, 1)
    ]


def _box(item: XmlObject) -> Json:
    xmin, ymin, xmax, ymax = item.box
    width, height = xmax - xmin, ymax - ymin
    return {"bbox": [xmin, ymin, width, height], "area": width * height, "iscrowd": False}
