"""Notebooks as pages: their text and code, without running them (the tests do)."""

from __future__ import annotations

import json
from typing import Any

from myst_parser.sphinx_ import Parser


class NotebookParser(Parser):
    """Parses a notebook as the Markdown of its cells."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: Any) -> None:
        super().parse(as_markdown(inputstring), document)


def as_markdown(notebook: str) -> str:
    """The cells of a notebook's JSON, code in fences."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"]).rstrip()
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.setup_extension("myst_parser")
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True}
