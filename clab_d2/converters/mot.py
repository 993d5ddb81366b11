"""MOTChallenge's text files -> CocoVID JSON.

A sequence is a folder with ``gt/gt.txt``, usually ``seqinfo.ini`` and the pictures in ``img1/``.
Each line of ``gt.txt`` is one object in one frame::

    frame, id, left, top, width, height, flag, class, visibility

Frames count from 1, and the picture's top left pixel is (1, 1). CVAT's export "MOT 1.1" has the
same files, with the class names in ``gt/labels.txt`` and the top left corner at (0, 0). Files of
2015 have world coordinates (three numbers, -1 if unknown) in place of class and visibility.
"""

from __future__ import annotations

import configparser
import logging
import math
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from clab_d2.converters.coco_vid_builder import (
    AnnotatedVideo,
    ConversionOptions,
    Counts,
    Json,
    ObjectBox,
    build_coco_vid,
    frame_name,
    unique_names,
)
from clab_d2.converters.limits import check_length
from clab_d2.data.video_frames import VideoFrameReader
from clab_d2.data.video_table import join_image_root
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import refuse_special_file

logger = logging.getLogger(__name__)

IGNORED = ("crowd", "drop", "keep")

#: Classes 1, 2, ... of the MOTChallenge's own sequences.
MOT_CLASSES = (
    "pedestrian",
    "person on vehicle",
    "car",
    "bicycle",
    "motorbike",
    "non motorized vehicle",
    "static person",
    "distractor",
    "occluder",
    "occluder on the ground",
    "occluder full",
    "reflection",
)

# The benchmark counts a pedestrian found at one of these as neither right nor wrong.
_LIKE_PEDESTRIANS = {"person on vehicle", "static person", "distractor", "reflection"}

# Texts are read as a whole. Those of the MOTChallenge have up to 20 MiB; a few kilobytes of a zip
# file may become any number.
_MAX_BYTES = 2**29

# An object of which less can be seen is marked as occluded.
_OCCLUDED_BELOW = 0.5


@dataclass(frozen=True)
class MotOptions:
    """How the text is to be understood.

    Attributes:
        class_names: names of the classes 1, 2, ...; by default those of ``labels.txt`` beside the
            annotations or, where there is none, :data:`MOT_CLASSES`.
        ignored: what becomes of objects whose flag is 0: "crowd" keeps those of the dataset's
            classes with ``iscrowd`` 1, so that they are neither trained on nor count as missed,
            and detections there not as false; "drop" leaves them out, so that they are background;
            "keep" takes them as objects like any other.
        first_frame: number of the first frame, 1 or 0.
        pixel_origin: coordinate of the picture's left and top border, 1 or 0; by default 0 where
            there is a ``labels.txt`` and 1 elsewhere.
    """

    class_names: Sequence[str] | None = None
    ignored: str = "crowd"
    first_frame: int = 1
    pixel_origin: int | None = None

    def __post_init__(self) -> None:
        if self.ignored not in IGNORED:
            raise ConfigError(f"--ignored {self.ignored!r}: it must be one of {', '.join(IGNORED)}")
        if self.class_names is not None and len(set(self.class_names)) < len(self.class_names):
            raise ConfigError("--class-names has a name twice; give each class its own")


def convert_mot(
    paths: Sequence[str | os.PathLike[str]],
    options: ConversionOptions | None = None,
    mot: MotOptions | None = None,
) -> tuple[Json, Counts]:
    """Convert MOT sequences to one CocoVID JSON.

    With the MOTChallenge's own class names, the dataset's classes are those with an object whose
    flag is not 0 (in MOT16 and MOT17 the pedestrians).

    Args:
        paths: sequence folders, folders with sequences at any depth, zip files of one sequence
            (CVAT's "MOT 1.1"), or text files.
        options: see :class:`ConversionOptions`.
        mot: see :class:`MotOptions`.

    Returns:
        The JSON and what went into it.

    Raises:
        DataError: a file is missing or malformed, or see :func:`build_coco_vid`.
    """
    options, mot = options or ConversionOptions(), mot or MotOptions()
    counts = Counts()
    places = [place for path in paths for place in _find(Path(path))]
    unique_names(
        [(place.name, str(place.text)) for place in places],
        "convert them apart, or name the folder that both are in",
    )
    sequences = [_read_sequence(place, options, mot, counts.noted) for place in places]
    labels = list(dict.fromkeys(label for sequence in sequences for label in sequence.labels))
    wanted = set(options.classes) if options.classes is not None else set(labels)
    for sequence in sequences:
        sequence.video.boxes = _settle_ignored(sequence, wanted, mot.ignored, counts.noted)
    videos = [sequence.video for sequence in sequences]
    return build_coco_vid(videos, labels, options, counts), counts


class _Place(NamedTuple):
    """Where a sequence is."""

    name: str
    text: Path | zipfile.Path  # the annotations
    folder: Path | zipfile.Path | None  # the sequence's, with img1/ and seqinfo.ini
    image_root: str | None  # the folder that ``name`` is relative to


@dataclass
class _Sequence:
    video: AnnotatedVideo
    labels: list[str]
    official_classes: bool


class _Line(NamedTuple):
    number: int
    frame: int
    track: int | None
    bbox: tuple[float, float, float, float]
    flag: float
    class_number: int
    visibility: float


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def _find(path: Path) -> Iterator[_Place]:
    if path.is_dir():
        path = path.absolute()
        if (path / "gt" / "gt.txt").is_file():
            yield _Place(path.name, path / "gt" / "gt.txt", path, str(path.parent))
            return
        texts = sorted(path.rglob("gt/gt.txt"))
        if not texts:
            raise DataError(
                f"{path}: holds no gt/gt.txt, nor does any folder in it; name the folder of a MOT "
                "sequence or of several"
            )
        for text in texts:
            folder = text.parent.parent
            yield _Place(folder.relative_to(path).as_posix(), text, folder, str(path))
    elif path.is_file() and zipfile.is_zipfile(path):
        try:
            root = zipfile.Path(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: a damaged zip file ({error}); export it again") from None
        text = root / "gt" / "gt.txt"
        if not text.is_file():
            raise DataError(f"{path}: holds no gt/gt.txt; export it as 'MOT 1.1'")
        yield _Place(path.stem, text, root, None)
    elif path.parent.name in ("gt", "det") and path.name in ("gt.txt", "det.txt"):
        folder = path.absolute().parent.parent
        yield _Place(folder.name, path, folder, str(folder.parent))
    else:
        yield _Place(path.stem, path, None, None)


def _read_text(path: Path | zipfile.Path) -> str:
    if isinstance(path, Path):
        refuse_special_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise DataError(f"{path}: more than {_MAX_BYTES >> 20} MiB; it is no MOT text file")
        return data.decode("utf-8-sig")
    except (FileNotFoundError, KeyError):
        raise DataError(f"{path}: no such file of annotations; check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text ({error.reason}); it must be a MOT text file") from None
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _read_sequence(
    place: _Place, options: ConversionOptions, mot: MotOptions, noted: Counter[str]
) -> _Sequence:
    labels_file = place.text.parent / "labels.txt"
    has_labels = labels_file.is_file()
    if mot.class_names is not None:
        names = list(mot.class_names)
    elif has_labels:
        names = [line.strip() for line in _read_text(labels_file).splitlines() if line.strip()]
        if not names or len(set(names)) < len(names):
            raise DataError(f"{labels_file}: it must name each class once, one a line")
    else:
        names = list(MOT_CLASSES)
    official = mot.class_names is None and not has_labels

    origin = mot.pixel_origin if mot.pixel_origin is not None else (0 if has_labels else 1)
    lines = _parse(_read_text(place.text), str(place.text), mot.first_frame, not official)
    boxes = []
    seen: dict[tuple[int, int], int] = {}
    for line in lines:
        if line.class_number > len(names):
            raise DataError(
                f"{place.text}: line {line.number} has class {line.class_number}, but there are "
                f"{len(names)} class names; give all with --class-names"
            )
        if line.track is not None:
            earlier = seen.setdefault((line.frame, line.track), line.number)
            if earlier != line.number:
                raise DataError(
                    f"{place.text}: lines {earlier} and {line.number} both have object "
                    f"{line.track} in frame {line.frame + mot.first_frame}; give each object its "
                    "own number"
                )
        x, y, width, height = line.bbox
        boxes.append(
            ObjectBox(
                line.frame,
                names[line.class_number - 1],
                line.track,
                (x - origin, y - origin, width, height),
                occluded=line.visibility < _OCCLUDED_BELOW,
                ignored=line.flag == 0,
            )
        )
    _warn_of_detections(place, lines)
    noted["objects without a track"] += sum(box.track is None for box in boxes)
    video = AnnotatedVideo(place.name, range(0), boxes, image_root=place.image_root)
    _set_frames(video, place, lines, options, mot.first_frame)
    if official:
        names = [n for n in names if any(box.label == n and not box.ignored for box in boxes)]
        if mot.ignored == "keep":
            names = [n for n in MOT_CLASSES if any(box.label == n for box in boxes)]
    return _Sequence(video, names, official)


def _set_frames(
    video: AnnotatedVideo,
    place: _Place,
    lines: Sequence[_Line],
    options: ConversionOptions,
    first_frame: int,
) -> None:
    """Set how many frames a video has, how large they are and what they are called."""
    length = 0
    folder, extension = "img1", None
    info_file = place.folder / "seqinfo.ini" if place.folder is not None else None
    if info_file is not None and info_file.is_file():
        info = _read_seqinfo(info_file)
        length, video.size, folder, extension = info
    if place.folder is not None:
        pictures = _picture_names(place.folder, folder)
        if pictures and place.image_root is not None:
            video.pictures = f"{{video}}/{folder}/*{extension or PurePosixPath(pictures[0]).suffix}"
        else:
            suffix = extension or (PurePosixPath(pictures[0]).suffix if pictures else ".jpg")
            number = "number" if first_frame else "frame"
            video.pictures = f"{{video}}/{folder}/{{{number}:06d}}{suffix}"
        length = length or len(pictures)
    length = length or _length_of_clip(video, options)
    last = max(lines, key=lambda line: line.frame, default=None)
    if not length:
        if last is None:
            raise DataError(
                f"{place.text}: empty, and nothing else tells how many frames the video has; add "
                "seqinfo.ini or the pictures"
            )
        length = last.frame + 1
        check_length(f"{place.text}: line {last.number}: the video", length)
        logger.warning(
            "%s: nothing tells how many frames the video has: %d, as far as there are objects",
            place.text,
            length,
        )
    if last is not None and last.frame >= length:
        raise DataError(
            f"{place.text}: line {last.number} is of frame {last.frame + first_frame}, but the "
            f"video has {length} frames; correct seqinfo.ini, or add the missing pictures"
        )
    check_length(f"video {video.name}", length)
    video.frames = range(length)


def _read_seqinfo(
    path: Path | zipfile.Path,
) -> tuple[int, tuple[int, int] | None, str, str | None]:
    """Length (0 if not told), (height, width), picture folder and pictures' suffix."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(_read_text(path))
        section = parser["Sequence"]
        length = section.getint("seqLength", 0)
        height, width = section.getint("imHeight", 0), section.getint("imWidth", 0)
    except KeyError:
        raise DataError(f"{path}: no section [Sequence]; correct or remove it") from None
    except (configparser.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not understood ({reason}); correct or remove it") from None
    if min(length, height, width) < 0 or bool(height) != bool(width):
        raise DataError(f"{path}: {length} frames of {width}x{height} pixels; correct or remove it")
    folder = section.get("imDir", "img1").strip("/ ")
    extension = section.get("imExt")
    # Parts of file names: they must not lead out of the image folder, nor be taken for a pattern.
    if not folder or ".." in PurePosixPath(folder).parts or _PATTERN.search(folder):
        raise DataError(f"{path}: imDir {folder!r} is no folder of the sequence; correct it")
    if extension is not None and (_PATTERN.search(extension) or "/" in extension):
        raise DataError(f"{path}: imExt {extension!r} is no ending of a picture's name; correct it")
    return length, (height, width) if height else None, folder, extension


# What means something in a pattern of file names, and what no name has.
_PATTERN = re.compile(r"[{}*?\[\]\0]")


def _picture_names(root: Path | zipfile.Path, folder: str) -> list[str]:
    suffixes = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
    place = root / folder
    if not place.is_dir():
        return []
    names = sorted(item.name for item in place.iterdir())
    return [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]


def _length_of_clip(video: AnnotatedVideo, options: ConversionOptions) -> int:
    if options.clips is None or options.image_root is None:
        return 0
    clip = join_image_root(options.image_root, frame_name(video, options.clips, 0, 0))
    return len(VideoFrameReader(clip)) if os.path.isfile(clip) else 0


# ---------------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------------


def _parse(text: str, where: str, first_frame: int, named_classes: bool) -> list[_Line]:
    lines = []
    for number, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        fields = row.split(",") if "," in row else row.split()
        try:
            if len(fields) < 6:
                raise ValueError(f"{len(fields)} numbers")
            values = [float(field) for field in fields if field.strip()]
            if len(values) < len(fields) - 1 or not all(map(math.isfinite, values)):
                raise ValueError("a number is missing or not finite")
            lines.append(_line(number, values, first_frame, named_classes))
        except ValueError as error:
            raise DataError(
                f"{where}: line {number} is {row[:100]!r} ({error}); it must be frame, id, left, "
                "top, width, height and, if known, flag, class, visibility"
            ) from None
    return lines


def _line(number: int, values: list[float], first_frame: int, named_classes: bool) -> _Line:
    frame, track = _whole(values[0], "frame"), _whole(values[1], "id")
    if frame < first_frame:
        hint = ", unless --first-frame 0 says otherwise" if first_frame else ""
        raise ValueError(f"frame {frame}; frames count from {first_frame}{hint}")
    if values[4] < 0 or values[5] < 0:
        raise ValueError("a negative size")
    # With ten numbers the last three are world coordinates, unless there are class names.
    has_class = len(values) >= 8 and (len(values) < 10 or named_classes)
    class_number = _whole(values[7], "class") if has_class else -1
    if class_number < 1 and class_number != -1:
        raise ValueError(f"class {class_number}; classes count from 1")
    visibility = values[8] if has_class and len(values) >= 9 else 1.0
    return _Line(
        number,
        frame - first_frame,
        track if track >= 0 else None,
        (values[2], values[3], values[4], values[5]),
        flag=values[6] if len(values) >= 7 else 1.0,
        class_number=max(class_number, 1),  # -1: no class, so the only one
        visibility=visibility if visibility >= 0 else 1.0,  # -1: not known
    )


def _whole(value: float, name: str) -> int:
    if not value.is_integer():
        raise ValueError(f"{name} {value:g}")
    return int(value)


def _warn_of_detections(place: _Place, lines: Sequence[_Line]) -> None:
    scores = {line.flag for line in lines} - {0.0, 1.0, -1.0}
    if lines and scores and all(line.track is None for line in lines):
        logger.warning(
            "%s: objects have no numbers, but scores: these look like a detector's detections, "
            "not annotations (those are in gt/gt.txt)",
            place.text,
        )


def _settle_ignored(
    sequence: _Sequence, classes: set[str], ignored: str, noted: Counter[str]
) -> list[ObjectBox]:
    """Boxes as they go into the JSON, after what is to become of those with flag 0."""
    boxes = []
    for box in sequence.video.boxes:
        if ignored == "keep":
            box = box._replace(ignored=False)
        elif (
            ignored == "crowd"
            and sequence.official_classes
            and box.label in _LIKE_PEDESTRIANS - classes
            and "pedestrian" in classes
        ):
            noted["objects like pedestrians, to ignore"] += 1
            box = box._replace(label="pedestrian", ignored=True)
        elif box.ignored and (ignored == "drop" or box.label not in classes):
            noted["objects with flag 0 left out"] += 1
            continue
        boxes.append(box)
    return boxes
