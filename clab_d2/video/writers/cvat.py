"""CVAT's format "CVAT for video 1.1", to correct detections there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from xml.sax.saxutils import escape, quoteattr

from clab_d2.errors import one_line
from clab_d2.video.result import FrameResult
from clab_d2.video.writers.base import Detection, FileDetectionWriter, detections_of

# A number in the head that grows with the video is written over in place, so it has a fixed width.
_NUMBER_WIDTH = 10
# What is still open is written anew only so often: a track may have thousands of boxes.
_FRAMES_PER_TAIL = 25
_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n'
_END = "</annotations>\n"


@dataclass
class _Track:
    label: str
    lines: list[str] = field(default_factory=list)
    last: Detection | None = None


class CVATWriter(FileDetectionWriter):
    """Writes "CVAT for video 1.1": import it into a task of the same video ("Upload annotations").

    A track of the detector's becomes a track of CVAT's; where it is not seen for a while it is
    "outside", where it changes its class a new one begins. A box without a track becomes a track
    of one frame. A track is written as a whole once it ends; those that go on are in the file at
    every 25th frame and at the end.

    Args:
        path: the ``.xml`` file.
        source: the video's name in the file.
        class_names: the labels.
        score_threshold: detections below it are left out: these are annotations, not candidates.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        source: str,
        class_names: Sequence[str],
        score_threshold: float = 0.5,
    ) -> None:
        self._score_threshold = score_threshold
        self._source = one_line(PurePath(source).name or source)
        self._labels = [one_line(name) for name in class_names]
        self._open: dict[int, _Track] = {}
        # Of the frame before: where they end, only the next frame shows; the last has none.
        self._alone: list[_Track] = []
        self._num_tracks = 0
        self._has_meta = False
        super().__init__(path, _HEAD, _END)

    def _write(self, result: FrameResult) -> None:
        if not self._has_meta:
            self._write_meta(*result.image.shape[:2])
        ended = [self._close(track, result.index) for track in self._alone]
        self._alone = []
        seen: set[int] = set()
        for found in detections_of(result, self._score_threshold):
            if found.track_id is None or found.track_id in seen:
                box = _box(result.index, found)
                self._alone.append(_Track(found.class_name, [box], found))
                continue
            seen.add(found.track_id)
            track = self._open.get(found.track_id)
            if track is not None and track.label != found.class_name:
                ended.append(self._close(track, result.index))
                track = None
            if track is None:
                track = self._open[found.track_id] = _Track(found.class_name)
            track.lines.append(_box(result.index, found))
            track.last = found
        for number, track in self._open.items():
            if number not in seen and track.last is not None:
                track.lines.append(_box(result.index, track.last, outside=True))
                track.last = None
        count = self.num_frames + 1
        for position, value in ((self._size_at, count), (self._stop_at, result.index)):
            self._file.overwrite(position, f"{value:<{_NUMBER_WIDTH}}")
        if ended or count % _FRAMES_PER_TAIL == 0:
            is_due = count % _FRAMES_PER_TAIL == 0
            self._file.append("".join(ended), self._tail() if is_due else _END)

    def close(self) -> None:
        """Finish the file with the tracks that are seen to the end."""
        self._file.append("", self._tail())
        super().close()

    def _close(self, track: _Track, frame: int) -> str:
        """The XML of a track that is not in ``frame`` nor later."""
        number, self._num_tracks = self._num_tracks, self._num_tracks + 1
        lines = list(track.lines)
        if track.last is not None:
            lines.append(_box(frame, track.last, outside=True))
        head = f'  <track id="{number}" label={quoteattr(one_line(track.label))} source="auto">\n'
        return head + "".join(lines) + "  </track>\n"

    def _tail(self) -> str:
        """The end of a file in which the tracks that are open go on no longer."""
        before = self._num_tracks
        # Nothing comes after the last frame, where CVAT would have an "outside" box.
        going_on = [*self._open.values(), *self._alone]
        tracks = [self._close(_Track(track.label, track.lines), 0) for track in going_on]
        self._num_tracks = before
        return "".join(tracks) + _END

    def _write_meta(self, height: int, width: int) -> None:
        labels = "".join(
            f"<label><name>{escape(name)}</name><type>rectangle</type>"
            "<attributes></attributes></label>"
            for name in self._labels
        )
        space = " " * _NUMBER_WIDTH
        meta = (
            "  <version>1.1</version>\n  <meta>\n    <task>\n"
            f"      <id>0</id><name>{escape(self._source)}</name><size>{space}</size>"
            "<mode>interpolation</mode>\n"
            f"      <start_frame>0</start_frame><stop_frame>{space}</stop_frame>"
            "<frame_filter></frame_filter>\n"
            f"      <labels>{labels}</labels>\n"
            f"      <original_size><width>{width}</width><height>{height}</height>"
            f"</original_size>\n      <source>{escape(self._source)}</source>\n"
            "    </task>\n  </meta>\n"
        )
        before = len(_HEAD.encode())
        self._size_at, self._stop_at = (
            before + len(meta[: meta.index(tag) + len(tag)].encode())
            for tag in ("<size>", "<stop_frame>")
        )
        self._file.append(meta, _END)
        self._has_meta = True


def _box(frame: int, found: Detection, outside: bool = False) -> str:
    corners = zip(("xtl", "ytl", "xbr", "ybr"), found.box, strict=True)
    where = " ".join(f'{name}="{value:.2f}"' for name, value in corners)
    return (
        f'    <box frame="{frame}" keyframe="1" outside="{int(outside)}" occluded="0" {where} '
        'z_order="0"></box>\n'
    )
