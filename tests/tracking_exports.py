"""Files as CVAT and MOT tools write them, made from plain boxes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr


@dataclass
class CvatTrack:
    """A track: ``boxes`` are (frame, (xtl, ytl, xbr, ybr), more attributes)."""

    label: str
    boxes: Sequence[tuple[int, tuple[float, float, float, float], Mapping[str, object]]]
    task_id: int | None = None
    shape: str = "box"

    def xml(self, number: int) -> str:
        task = "" if self.task_id is None else f' task_id="{self.task_id}" subset="default"'
        lines = [f'<track id="{number}" label={quoteattr(self.label)} source="manual"{task}>']
        for frame, corners, more in self.boxes:
            where = dict(zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True))
            if self.shape != "box":
                where = {"points": "1,1;5,1;5,5"}
            given = {"frame": frame, "keyframe": 1, "outside": 0, "occluded": 0, **where, **more}
            attributes = " ".join(f'{key}="{value}"' for key, value in given.items())
            lines.append(f'<{self.shape} {attributes} z_order="0"></{self.shape}>')
        return "\n".join([*lines, "</track>"])


@dataclass
class CvatTask:
    """The description of a task (or, with ``kind="job"``, of a job) in <meta>."""

    size: int
    id: int = 7
    name: str = "my task"
    source: str | None = "clip.mp4"
    height_width: tuple[int, int] | None = (48, 64)
    start: int = 0
    step: int = 1
    stop: int | None = None
    subset: str = "default"
    kind: str = "task"
    more: str = ""

    def xml(self, labels: str = "") -> str:
        filter_ = f"step={self.step}" if self.step > 1 else ""
        stop = self.stop
        if stop is None:
            stop = self.start + (self.size - 1) * self.step
        parts = [
            f"<id>{self.id}</id><size>{self.size}</size><mode>interpolation</mode>",
            f"<start_frame>{self.start}</start_frame><stop_frame>{stop}</stop_frame>",
            f"<frame_filter>{filter_}</frame_filter><subset>{self.subset}</subset>{labels}",
            self.more,
        ]
        if self.kind == "task":
            parts.append(f"<name>{escape(self.name)}</name>{self.size_xml()}")
            if self.source is not None:
                parts.append(f"<source>{escape(self.source)}</source>")
        return f"<{self.kind}>{''.join(parts)}</{self.kind}>"

    def size_xml(self) -> str:
        if self.height_width is None:
            return ""
        height, width = self.height_width
        return f"<original_size><width>{width}</width><height>{height}</height></original_size>"


@dataclass
class CvatFile:
    """An ``annotations.xml``; several tasks make it a project's."""

    tasks: Sequence[CvatTask]
    tracks: Sequence[CvatTrack]
    labels: Sequence[str] = ("cat", "dog")
    project: bool = False
    label_more: Mapping[str, str] = field(default_factory=dict)

    def xml(self) -> str:
        labels = "".join(
            f"<label><name>{escape(name)}</name>{self.label_more.get(name, '')}</label>"
            for name in self.labels
        )
        labels = f"<labels>{labels}</labels>"
        if self.project:
            tasks = "".join(task.xml() for task in self.tasks)
            meta = f"<project><id>1</id><tasks>{tasks}</tasks>{labels}</project>"
        else:
            (task,) = self.tasks
            meta = task.xml(labels) + (task.size_xml() if task.kind == "job" else "")
        tracks = "\n".join(track.xml(number) for number, track in enumerate(self.tracks))
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta>{meta}<dumped>2024-01-01</dumped></meta>\n{tracks}\n</annotations>\n"
        )

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("annotations.xml", self.xml())
        else:
            path.write_text(self.xml(), encoding="utf-8")
        return path


def mot_text(rows: Sequence[Sequence[float]]) -> str:
    """Lines of a gt.txt."""
    return "".join(",".join(f"{value:g}" for value in row) + "\n" for row in rows)


def mot_sequence(
    folder: Path,
    rows: Sequence[Sequence[float]],
    length: int | None = 4,
    height_width: tuple[int, int] | None = (48, 64),
    labels: Sequence[str] | None = None,
) -> Path:
    """A sequence's folder with gt/gt.txt and, unless ``length`` is None, seqinfo.ini."""
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text(mot_text(rows))
    if labels is not None:
        (folder / "gt" / "labels.txt").write_text("\n".join(labels))
    if length is not None:
        lines = ["[Sequence]", f"name={folder.name}", "imDir=img1", "frameRate=25"]
        lines += [f"seqLength={length}", "imExt=.jpg"]
        if height_width is not None:
            lines += [f"imWidth={height_width[1]}", f"imHeight={height_width[0]}"]
        (folder / "seqinfo.ini").write_text("\n".join(lines) + "\n")
    return folder
