"""The examples of docs/extend.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "extend.md"

_EXAMPLE = re.compile(
    r"^\[tests/plugins/(\w+)\.py\].*?^```yaml\n(.*?)^```\n+^```python\n(.*?)^```", re.S | re.M
)
_BASE = re.compile(r'^_BASE_: "(.*)"$', re.M)


@dataclass(frozen=True)
class Example:
    """A plug-in and the config that uses it.

    Attributes:
        name: of its file in tests/plugins, without the ending.
        yaml: the config, with ``_BASE_`` in it.
        code: the plug-in, as the page has it.
    """

    name: str
    yaml: str
    code: str

    @property
    def file(self) -> Path:
        return ROOT / "tests" / "plugins" / f"{self.name}.py"

    @property
    def base(self) -> Path:
        """The config that it starts from."""
        match = _BASE.search(self.yaml)
        assert match is not None
        return ROOT / match[1]

    def with_base(self, base: Path) -> str:
        """The config on another base."""
        return _BASE.sub(f'_BASE_: "{base}"', self.yaml)


EXAMPLES = [Example(name, yaml, code) for name, yaml, code in _EXAMPLE.findall(PAGE.read_text())]
