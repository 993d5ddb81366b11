"""docs/method.md and what cites it, and the links of all pages."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.modeling import build_backbone
from matplotlib.mathtext import MathTextParser
from torch.utils.flop_counter import FlopCounterMode

from clab_d2.engine import load_config

ROOT = Path(__file__).resolve().parents[2]
METHOD_PAGE = ROOT / "docs" / "method.md"
PAGES = [ROOT / "README.md", ROOT / "datasets" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
CODE = [
    path
    for folder in ("clab_d2", "configs", "datasets", "docs", "tests", "tools")
    for pattern in ("*.py", "*.yaml")
    for path in sorted((ROOT / folder).rglob(pattern))
]


def prose(page: Path) -> str:
    """A page without its code blocks and comments."""
    return re.sub(r"^```.*?^```|<!--.*?-->", "", page.read_text(), flags=re.S | re.M)


def headings(page: Path) -> list[str]:
    return [
        line.lstrip("#").strip() for line in prose(page).splitlines() if re.match(r"#{1,6} ", line)
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in headings(page):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """Links and images of a page that lead nowhere within the repository."""
    broken = []
    for target in re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        found = file.is_relative_to(root) and file.exists()
        if found and anchor:
            found = file.suffix == ".md" and anchor in anchors(file)
        if not found:
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_images_and_anchors_resolve(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A `title`, twice\n\n## A title twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[ok](other.md#a-title-twice-1) [ok](#here) [out](https://x.org/y)\n# Here\n"
        "![a\nb](gone.png) [no](other.md#a-title-twice-2) [no](#there) [no](../page.md)\n"
        "```\n[code](not.md)\n```\n"
    )
    broken = broken_links(page, tmp_path)
    assert broken == ["gone.png", "other.md#a-title-twice-2", "#there", "../page.md"]


def paths_named(page: Path) -> set[str]:
    """Files and folders of the repository that a page names in its text."""
    return set(
        re.findall(
            r"`((?:clab_d2|configs|docs|tests|tools)/[\w./-]+|modeling/[\w./-]+)`", prose(page)
        )
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    places = (ROOT, ROOT / "clab_d2")
    named = paths_named(page)
    assert {n for n in named if not any((place / n).exists() for place in places)} == set()


def citations(path: Path) -> Iterator[str]:
    """Sections of docs/method.md that comments and docstrings of a file name."""
    text = re.sub(r"\s*\n\s*#?\s*", " ", path.read_text())
    yield from re.findall(r"docs/method\.md, '([^']+)'", text)


def test_cited_sections_exist() -> None:
    cited = {(path, section) for path in CODE for section in citations(path)}
    cited = {(path, section) for path, section in cited if path != Path(__file__).resolve()}
    assert len(cited) >= 5
    sections = set(headings(METHOD_PAGE))
    assert {(str(path), section) for path, section in cited if section not in sections} == set()


def test_no_comment_cites_what_a_reader_has_not() -> None:
    # Names of documents that lie outside the repository, in pieces so as not to find themselves.
    # A path to ../shared/golden is used, not cited.
    words = "|".join(["MET" + "HOD", "DES" + "IGN"])
    pattern = re.compile(rf"(?<![.\w])({words})(?!\w)(?! [\"'=])")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in [*CODE, *PAGES]
        for match in pattern.finditer(path.read_text())
    ]
    assert found == []


def test_constants_are_those_of_the_config() -> None:
    cfg = load_config(str(ROOT / "configs/ImageNetVID/clab_R_101_DC5.yaml"), [])
    stated = re.findall(r"`((?:[A-Z][A-Z0-9_]*\.)+[A-Z0-9_]+) ([^`]+)`", METHOD_PAGE.read_text())
    assert len(stated) > 30
    wrong = []
    for key, text in stated:
        value = cfg
        for name in key.split("."):
            value = value[name]
        wanted = text if isinstance(value, str) else ast.literal_eval(text)
        if value != wanted:
            wrong.append((key, text, value))
    assert wrong == []


def equations() -> list[str]:
    text = re.sub(r"`[^`]*`", "", prose(METHOD_PAGE))
    return re.findall(r"\$\$(.+?)\$\$", text, flags=re.S) + re.findall(
        r"(?<!\$)\$([^$]+)\$(?!\$)", text
    )


def test_equations_render() -> None:
    found = equations()
    assert len(found) > 60
    parser = MathTextParser("agg")
    for equation in found:
        parser.parse(f"${equation.strip()}$")
        # Markdown takes these for its own before the equation is drawn: an escaped punctuation
        # mark, emphasis (an underscore after punctuation or space), a cell of a table.
        assert not re.search(r"\\[^a-zA-Z]|[^\w]_|[*|<]", equation), equation


@pytest.fixture(scope="module")
def draw_method() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "scripts")
        yield importlib.import_module("draw_method")


def test_figures_are_drawn_as_the_page_shows_them(draw_method: ModuleType, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        draw_method.main(["--output", str(tmp_path / folder)])
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    shown = set(re.findall(r"\((method_\w+\.png)\)", METHOD_PAGE.read_text()))
    assert set(drawn) == shown
    for name, image in drawn.items():
        assert image == (tmp_path / "second" / name).read_bytes(), f"{name} differs from run to run"
        # Width and height; the pixels depend on the version of matplotlib.
        assert image[16:24] == (ROOT / "docs" / name).read_bytes()[16:24], name


def test_every_image_has_a_description() -> None:
    for page in PAGES:
        assert re.findall(r"!\[\s*\]", prose(page)) == []


def test_table_of_costs_is_what_is_drawn(draw_method: ModuleType) -> None:
    text = METHOD_PAGE.read_text()
    costs = draw_method.multiply_adds()
    total = draw_method.Cost("sum", *(sum(getattr(c, kind) for c in costs)
                                      for kind in ("single", "plain", "here")))  # fmt: skip
    for cost in [*costs, total]:
        row = f"| {cost.part} | {cost.single:,.0f} | {cost.plain:,.0f} | {cost.here:,.0f} |"
        assert row in text


def test_cost_of_the_backbone_is_counted(draw_method: ModuleType) -> None:
    cfg = load_config(
        str(ROOT / "configs/ImageNetVID/clab_R_101_DC5.yaml"), ["MODEL.DEVICE", "cpu"]
    )
    with torch.device("meta"):
        backbone = build_backbone(cfg).eval()
        with FlopCounterMode(display=False) as counter:
            feature = backbone(torch.empty(1, 3, 608, 1008))["c5"]
    assert feature.shape[1:] == (512, 38, 63)
    multiply_adds = counter.get_total_flops() / 2 / 1e9
    assert draw_method.multiply_adds()[0].single == pytest.approx(multiply_adds, abs=0.1)
