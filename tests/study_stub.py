"""A study on tiny videos whose runs are made by a stub (stub_train_net.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tool_modules import import_tool

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class StubbedStudy:
    """A study's file and folder, and what the stub was told and tells."""

    file: Path
    output: Path
    events_file: Path
    train_script: Path | None = HERE / "stub_train_net.py"

    def declare(self, **changes: Any) -> None:
        """Change keys of the YAML; None takes one out."""
        content = yaml.safe_load(self.file.read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        self.file.write_text(yaml.safe_dump(kept, sort_keys=False))

    def arguments(self, *more: str) -> list[str]:
        script = ["--train-script", str(self.train_script)] if self.train_script else []
        return ["--study", str(self.file), "--output", str(self.output), *script, *more]

    def run(self, *more: str) -> int:
        return import_tool("study").main(self.arguments(*more))

    def events(self, what: str = "") -> list[dict[str, Any]]:
        """What the runs noted; ``what`` chooses by how it begins."""
        if not self.events_file.exists():
            return []
        events = [json.loads(line) for line in self.events_file.read_text().splitlines()]
        return [event for event in events if event["what"].startswith(what)]

    def starts(self) -> dict[str, list[int]]:
        """Folder of a training below runs/ -> the iterations at which it was started."""
        found: dict[str, list[int]] = {}
        for event in self.events("start at "):
            folder = Path(event["folder"]).relative_to(self.output / "runs").as_posix()
            found.setdefault(folder, []).append(int(event["what"].rpartition(" ")[2]))
        return found

    def table(self) -> dict[str, Any]:
        return json.loads((self.output / "table.json").read_text())


def metrics_of(table: dict[str, Any], metric: str) -> Sequence[dict[str, Any]]:
    return next(figure["rows"] for figure in table["figures"] if figure["metric"] == metric)
