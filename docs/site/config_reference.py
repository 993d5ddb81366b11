"""The reference of config keys, made from clab_d2/config.py: Sphinx's directive ``config-keys``."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parents[2] / "clab_d2" / "config.py"


@dataclass(frozen=True)
class Key:
    """A config key.

    Attributes:
        name: such as ``MODEL.SELSA.NUM_HEADS``.
        default: as Python writes it.
        text: the comment above it in the file.
    """

    name: str
    default: str
    text: str


def read_keys(file: Path = CONFIG) -> list[Key]:
    """Every key that the file's functions set on ``cfg``, in its order.

    A comment stands for all keys down to the next comment or empty line; of a section (a ``CN()``)
    it stands for the section's first keys.
    """
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    found = []
    comment: list[str] = []
    said = 0  # the line up to which comments have been read
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("_add_"):
            continue
        for statement in node.body:
            if not isinstance(statement, ast.Assign):
                continue
            name = ast.unparse(statement.targets[0])
            if not name.startswith("cfg."):
                continue
            above = _comment_above(lines, statement.lineno - 1)
            if above:
                comment = above
            elif statement.lineno - 1 > said and not lines[statement.lineno - 2].strip():
                comment = []
            said = statement.end_lineno or statement.lineno
            if ast.unparse(statement.value) != "CN()":
                text = " ".join(comment)
                found.append(Key(name.removeprefix("cfg."), ast.unparse(statement.value), text))
                comment = comment if above == [] else []
    return found


def _comment_above(lines: list[str], index: int) -> list[str]:
    """The lines of comment right above a line (0-based), without their marks."""
    start = index
    while start > 0 and lines[start - 1].strip().startswith("#"):
        start -= 1
    return [line.strip().lstrip("#").strip() for line in lines[start:index]]


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    from docutils import nodes
    from docutils.parsers.rst import Directive

    class ConfigKeys(Directive):
        """A table of all keys."""

        def run(self) -> list[nodes.Node]:
            self.state.document.settings.env.note_dependency(str(CONFIG))
            table = nodes.table(classes=["colwidths-given"])
            group = nodes.tgroup(cols=3)
            table += group
            for width in (35, 15, 50):
                group += nodes.colspec(colwidth=width)
            head, body = nodes.thead(), nodes.tbody()
            group += [head, body]
            head += _row("key", "default", "what it does")
            for key in read_keys():
                name, default = nodes.literal(text=key.name), nodes.literal(text=key.default)
                body += _row(name, default, key.text)
            return [table]

    def _row(*cells: Any) -> nodes.row:
        row = nodes.row()
        for cell in cells:
            content = nodes.Text(cell) if isinstance(cell, str) else cell
            row += nodes.entry("", nodes.paragraph("", "", content))
        return row

    app.add_directive("config-keys", ConfigKeys)
    return {"parallel_read_safe": True}
