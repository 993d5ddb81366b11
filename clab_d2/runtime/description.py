"""What an exported model's folder says of itself: ``model.json``, plain data.

A folder may come from a stranger. Nothing in it names a file, a module or code: the graphs are
always ``frame.onnx`` and ``key_frame.onnx``.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clab_d2.data.reference_frames import ReferenceFrames
from clab_d2.errors import DataError
from clab_d2.io import read_json, write_json
from clab_d2.runtime.preprocessing import Preprocessing

FORMAT = "clab_d2 exported model"
VERSION = 1
DESCRIPTION = "model.json"
FRAME_GRAPH = "frame.onnx"
KEY_FRAME_GRAPH = "key_frame.onnx"


@dataclass(frozen=True)
class Description:
    """An exported model but for its graphs.

    Attributes:
        class_names: by class number.
        preprocessing: from a frame to what the frame's graph takes.
        sampling: which frames serve as references; None for a single-frame detector.
        own: outputs of the frame's graph that the key frame's takes of the key frame.
        references: those that it takes of the references, as ``reference_<name>`` -> the axis that
            counts frames.
        score_threshold, nms_threshold, max_detections: see
            :func:`clab_d2.runtime.detections.select_detections`.
        finds_shots: whether references are to stay within shots, by cuts that are looked for.
        precision: of the backbone, "fp32" or "int8"; for people.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    sampling: ReferenceFrames | None
    own: tuple[str, ...]
    references: dict[str, int]
    score_threshold: float
    nms_threshold: float
    max_detections: int
    finds_shots: bool = False
    precision: str = "fp32"

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.json``."""
        content = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        write_json(Path(folder) / DESCRIPTION, content, indent=1)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Description:
        """Read ``model.json``.

        Raises:
            DataError: one line, where it is missing or is not what :meth:`save` writes.
        """
        path = Path(folder) / DESCRIPTION
        if not path.is_file():
            raise DataError(
                f"{folder}: no exported model, as it has no {DESCRIPTION}; tools/export_model.py "
                "makes one"
            )
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{path}: not written by tools/export_model.py; export the model anew")
        if content.get("version") != VERSION:
            raise DataError(
                f"{path}: of version {content.get('version')!r}, where this clab_d2 reads "
                f"{VERSION}; export the model anew, or take the clab_d2 that wrote it"
            )
        return _Reader(path, content).description()


class _Reader:
    """Reads values whose types and ranges are checked."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    def description(self) -> Description:
        return Description(
            class_names=self.texts(self.content, "class_names"),
            preprocessing=self.preprocessing(self.part(self.content, "preprocessing")),
            sampling=self.sampling(self.content.get("sampling")),
            own=self.texts(self.content, "own"),
            references=self.axes(self.part(self.content, "references")),
            score_threshold=self.number(self.content, "score_threshold", 0, 1),
            nms_threshold=self.number(self.content, "nms_threshold", 0, 1),
            max_detections=self.whole(self.content, "max_detections", -1, 10**6),
            finds_shots=bool(self.choice(self.content, "finds_shots", (False, True))),
            precision=self.choice(self.content, "precision", ("fp32", "int8")),
        )

    def preprocessing(self, part: dict[str, Any]) -> Preprocessing:
        size = None
        if part.get("size") is not None:
            size = (self.numbers(part, "size", 2, 1, 2**14),)[0]
        mean = self.numbers(part, "pixel_mean", 3, -1e6, 1e6)
        std = self.numbers(part, "pixel_std", 3, 1e-6, 1e6)
        return Preprocessing(
            channels=self.choice(part, "channels", ("RGB", "BGR")),
            backend=self.choice(part, "backend", ("opencv", "pillow")),
            short_edge=self.whole(part, "short_edge", 0, 2**14),
            max_size=self.whole(part, "max_size", 0, 2**14),
            pixel_mean=mean,
            pixel_std=std,
            divisibility=self.whole(part, "divisibility", 0, 2**10),
            size=None if size is None else (int(size[0]), int(size[1])),
        )

    def sampling(self, part: Any) -> ReferenceFrames | None:
        if part is None:
            return None
        if not isinstance(part, dict):
            raise self.wrong("sampling", part)
        return ReferenceFrames(
            self.choice(part, "sampling", ("adaptive", "fixed", "causal")),
            self.whole(part, "num", 1, 10**4),
            self.whole(part, "stride", 1, 10**6),
        )

    def axes(self, part: dict[str, Any]) -> dict[str, int]:
        return {str(name): self.whole(part, name, 0, 8) for name in part}

    def part(self, content: dict[str, Any], key: str) -> dict[str, Any]:
        value = content.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, value)
        return value

    def texts(self, content: dict[str, Any], key: str) -> tuple[str, ...]:
        value = content.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, value)
        return tuple(value)

    def choice(self, content: dict[str, Any], key: str, known: tuple[Any, ...]) -> Any:
        value = content.get(key)
        if type(value) is not type(known[0]) or value not in known:
            raise self.wrong(key, value)
        return value

    def number(self, content: dict[str, Any], key: str, least: float, most: float) -> float:
        return self._checked(key, content.get(key), least, most)

    def whole(self, content: dict[str, Any], key: str, least: int, most: int) -> int:
        value = content.get(key)
        if not isinstance(value, int):
            raise self.wrong(key, value)
        return int(self._checked(key, value, least, most))

    def numbers(
        self, content: dict[str, Any], key: str, count: int, least: float, most: float
    ) -> tuple[float, ...]:
        value = content.get(key)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(key, value)
        return tuple(self._checked(key, item, least, most) for item in value)

    def _checked(self, key: str, value: Any, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, value)
        if not (math.isfinite(value) and least <= value <= most):
            raise self.wrong(key, value)
        return float(value)

    def wrong(self, key: str, value: Any) -> DataError:
        return DataError(
            f"{self.path}: {key} is {str(value)[:60]!r}, which no export writes; get the folder "
            "again from its source, or export the model anew"
        )
