"""The datasets that the tests make on the spot (see conftest.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class MadeDataset:
    """A dataset on disk: change ``data`` and call :meth:`save` to break it."""

    name: str
    root: Path
    data: dict[str, Any]

    @property
    def json_file(self) -> Path:
        return self.root / "annotations.json"

    def save(self) -> None:
        self.json_file.write_text(json.dumps(self.data))

    def frame_file(self, video_id: int, frame_id: int) -> Path:
        for image in self.data["images"]:
            if (image.get("video_id"), image.get("frame_id")) == (video_id, frame_id):
                return self.root / image["file_name"]
        raise LookupError((video_id, frame_id))


MakeDataset = Callable[..., MadeDataset]
