"""docs/extend.md: its examples are the plug-ins that the tests run, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from extend_page import EXAMPLES, PAGE, ROOT, Example

import clab_d2.data
import clab_d2.modeling
import clab_d2.postprocessing
from clab_d2.engine import import_plugins, load_config

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)


def test_every_plugin_is_an_example() -> None:
    assert sorted(e.file for e in EXAMPLES) == sorted((ROOT / "tests" / "plugins").glob("*.py"))


@each_example
def test_code_is_the_file_itself(example: Example) -> None:
    assert example.code == example.file.read_text()
    assert len(example.code.splitlines()) <= 60


@each_example
def test_config_loads_as_the_page_has_it(example: Example, tmp_path: Path) -> None:
    """On the config that the page names, and with what it says of the part."""
    import_plugins([str(example.file)])
    path = tmp_path / "mine.yaml"
    path.write_text(example.with_base(example.base))
    cfg = load_config(str(path), [])
    assert f'"{_registered_name(example)}"' in example.yaml
    assert _registered_name(example) in cfg.dump()


def _registered_name(example: Example) -> str:
    named = re.search(r'register\(name="(\w+)"\)', example.code)
    if named:
        return named[1]
    match = re.search(r"register\(\)\nclass (\w+)", example.code)
    assert match is not None
    return match[1]


def test_nothing_imports_the_plugins() -> None:
    for path in (ROOT / "clab_d2").rglob("*.py"):
        text = path.read_text()
        assert not any(example.name in text for example in EXAMPLES), path


def test_classes_and_registries_are_where_the_page_says() -> None:
    table = PAGE.read_text().split("## Use a part")[0]
    rooms = (clab_d2.modeling, clab_d2.data, clab_d2.postprocessing)
    parts = r"`(\w+(?:Aggregation|Loss|Sampling|Detector|ROIHeads|Processing))`"
    for name in re.findall(parts, table):
        assert any(hasattr(room, name) for room in rooms), name
    for name in re.findall(r"\| `(\w+_REGISTRY)`", table):
        assert any(hasattr(room, name) for room in rooms), name
