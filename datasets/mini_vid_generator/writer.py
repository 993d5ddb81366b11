"""Mini VID on disk: ILSVRC2015's layout, written whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from clab_d2.errors import DataError

from .background import make_background
from .coats import CLASSES
from .plan import Box, VideoPlan, plan_still, plan_video
from .scene import render
from .summary import VideoRecord, contact_sheet, describe

#: Raise it whenever the same seed would give other files.
VERSION = 4
STATS_FILE = "mini_vid.json"
_QUALITY = 90


@dataclass(frozen=True)
class Size:
    """How much to make."""

    train: int = 104
    val: int = 120
    stills: int = 128


def video_name(split: str, index: int) -> str:
    if split == "train":
        return f"train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_{index:08d}"
    return f"{split}/ILSVRC2015_{split}_{index:08d}"


def still_name(plan: VideoPlan, index: int) -> str:
    wnid = CLASSES[plan.tracks[0].look.name][0]
    return f"train/ILSVRC2013_train/{wnid}/{wnid}_{index}"


def frame_xml(
    folder: str, filename: str, width: int, height: int, boxes: list[Box], tracked: bool
) -> str:
    """An annotation in ILSVRC's own form. DET has no track, occlusion or generated flag."""
    lines = [
        "<annotation>",
        f"\t<folder>{folder}</folder>",
        f"\t<filename>{filename}</filename>",
        "\t<source>",
        "\t\t<database>ILSVRC_2015</database>",
        "\t</source>",
        "\t<size>",
        f"\t\t<width>{width}</width>",
        f"\t\t<height>{height}</height>",
        "\t</size>",
    ]
    for box in boxes:
        lines.append("\t<object>")
        if tracked:
            lines.append(f"\t\t<trackid>{box.track}</trackid>")
        lines += [
            f"\t\t<name>{CLASSES[box.name][0]}</name>",
            "\t\t<bndbox>",
            f"\t\t\t<xmax>{box.xmax}</xmax>",
            f"\t\t\t<xmin>{box.xmin}</xmin>",
            f"\t\t\t<ymax>{box.ymax}</ymax>",
            f"\t\t\t<ymin>{box.ymin}</ymin>",
            "\t\t</bndbox>",
        ]
        if tracked:
            lines += [
                f"\t\t<occluded>{int(box.occluded)}</occluded>",
                "\t\t<generated>0</generated>",
            ]
        lines.append("\t</object>")
    lines.append("</annotation>")
    return "\n".join(lines) + "\n"


def train_frames(length: int, count: int = 15) -> list[int]:
    """The 1-based frames of ``VID_train_15frames.txt``: ``count`` evenly spread, or all."""
    if length <= count:
        return list(range(1, length + 1))
    return [1 + i * (length - 1) // (count - 1) for i in range(count)]


def _save_jpeg(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not ok:
        raise OSError(f"{path}: OpenCV could not encode the picture as JPEG")
    path.write_bytes(data.tobytes())


def make_video(root: Path, plan: VideoPlan, name: str, still: bool = False) -> VideoRecord:
    """Draw a planned video and write its frames and annotations below ``root``."""
    tree = "DET" if still else "VID"
    background = make_background(
        plan.ground, plan.width, plan.height, plan.horizon, np.random.default_rng([*plan.seed, 6])
    )
    record = VideoRecord(
        name,
        plan.width,
        plan.height,
        [],
        [[None if d is None else d.kind for d in track.degradations] for track in plan.tracks],
    )
    for frame in range(plan.length):
        picture = render(plan, background, frame)
        boxes = plan.boxes(frame)
        record.boxes.append(boxes)
        place = name if still else f"{name}/{frame:06d}"
        _save_jpeg(root / "Data" / tree / f"{place}.JPEG", picture)
        xml = root / "Annotations" / tree / f"{place}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        text = frame_xml(xml.parent.name, xml.stem, plan.width, plan.height, boxes, not still)
        xml.write_text(text, encoding="utf-8")
    return record


def _job(job: tuple[str, int, str, int]) -> VideoRecord:
    """One video or still: what a worker process does."""
    root, seed, split, index = job
    if split == "det":
        plan = plan_still(seed, index)
        return make_video(Path(root), plan, still_name(plan, index), still=True)
    return make_video(Path(root), plan_video(seed, split, index), video_name(split, index))


def _write_lists(
    root: Path, train: list[VideoRecord], val: list[VideoRecord], stills: list[VideoRecord]
) -> None:
    lists = root / "Lists"
    lists.mkdir(parents=True)
    rows = [
        f"{r.name} 1 {frame} {len(r.boxes)}" for r in train for frame in train_frames(len(r.boxes))
    ]
    (lists / "VID_train_15frames.txt").write_text("\n".join(rows) + "\n")
    (lists / "VID_val_videos.txt").write_text(
        "".join(f"{r.name} 1 0 {len(r.boxes)}\n" for r in val)
    )
    (lists / "DET_train_30classes.txt").write_text("".join(f"{r.name} 1\n" for r in stills))


def existing(output: Path, seed: int, size: Size | None = None) -> dict[str, Any] | None:
    """The facts of a Mini VID already at ``output`` with this seed, version and size, or None.

    Raises:
        DataError: ``output`` holds something else.
    """
    if not output.exists():
        return None
    if not output.is_dir():
        raise DataError(f"{output} is a file: give --output a new folder")
    if not any(output.iterdir()):
        return None
    size = size or Size()
    try:
        facts = json.loads((output / STATS_FILE).read_text(encoding="utf-8"))
        wanted = {"version": VERSION, "seed": seed, "size": vars(size)}
        same = all(facts[key] == value for key, value in wanted.items())
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{output} holds other files than Mini VID: give --output a new or empty folder"
        ) from None
    if not same:
        raise DataError(
            f"{output} holds Mini VID of seed {facts['seed']}, version {facts['version']}: "
            f"delete it to make seed {seed}, version {VERSION}, or give --output another folder"
        )
    return facts


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that takes its place at the end, or vanishes."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if output.is_dir():
            output.rmdir()  # empty: existing() has looked
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _context() -> multiprocessing.context.BaseContext:
    """Forked where that is possible: a fresh process would import PyTorch, which isn't needed."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("fork" if "fork" in methods else "spawn")


def _set_up_worker() -> None:
    """A worker leaves Ctrl-C to its parent, which ends it, and ends as any process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The processes already share out the cores. Not 1: OpenCV would wait for threads of its own
    # that a fork did not bring along.
    cv2.setNumThreads(0)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make(
    output: str | os.PathLike[str],
    seed: int = 0,
    jobs: int | None = None,
    size: Size | None = None,
    convert: Callable[[Path, Path], object] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Make Mini VID.

    Args:
        output: the folder to make; new, empty, or Mini VID of the same seed (then nothing is done).
        seed: the same seed gives the same files, byte for byte.
        jobs: processes; the number of cores by default. Has no influence on the result.
        size: how much to make.
        convert: called with (ILSVRC root, folder for the JSON) before the folder is put in place.
        progress: called with (videos and stills done, all of them).

    Returns:
        What ``mini_vid.json`` holds.

    Raises:
        DataError: ``output`` holds something else.
    """
    output = Path(output)
    size = size or Size()
    facts = existing(output, seed, size)
    if facts is not None:
        return facts
    jobs = jobs or _cores()
    with _whole_folder(output) as root:
        todo = [
            (str(root), seed, split, i)
            for split, count in (("train", size.train), ("val", size.val), ("det", size.stills))
            for i in range(count)
        ]
        records: list[VideoRecord] = []
        with _context().Pool(jobs, _set_up_worker) as pool:
            for record in pool.imap(_job, todo, chunksize=max(1, min(4, len(todo) // (4 * jobs)))):
                records.append(record)
                if progress is not None:
                    progress(len(records), len(todo))
        parts = {
            "train": records[: size.train],
            "val": records[size.train : size.train + size.val],
            "det": records[size.train + size.val :],
        }
        _write_lists(root, parts["train"], parts["val"], parts["det"])
        facts = {
            "version": VERSION,
            "seed": seed,
            "size": vars(size),
            "splits": {k: describe(v, stills=k == "det") for k, v in parts.items()},
            "degradations": {r.name: r.degradations for k in parts for r in parts[k]},
        }
        (root / STATS_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        sheet = contact_sheet(root, parts["val"] + parts["train"])
        ok, data = cv2.imencode(".png", sheet[..., ::-1])
        if ok:
            (root / "preview.png").write_bytes(data.tobytes())
        if convert is not None:
            convert(root, root / "annotations")
    return facts
