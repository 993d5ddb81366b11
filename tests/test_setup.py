"""The set-up: what setup.py declares, the exact versions, and the check at import."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import clab_d2
from clab_d2 import _requirements
from clab_d2._requirements import REQUIREMENTS, UNKNOWN, check_requirements, find_version
from clab_d2.data.video_container import OLDEST_PYAV

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RECENT = {
    "torch": "2.4.0",
    "torchvision": "0.19",
    "detectron2": "0.6",
    "pytorch_metric_learning": "2.5.0",
}


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What setup.py writes into the package's metadata: field -> values."""
    folder = tmp_path_factory.mktemp("egg_info")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    info = folder / "clab_d2.egg-info"
    distribution = importlib.metadata.PathDistribution(info)
    fields = {name: distribution.metadata.get_all(name) for name in distribution.metadata}
    fields["Requires-Dist"] = distribution.requires  # older setuptools write it into another file
    fields["sources"] = (info / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    return fields


@pytest.fixture(scope="module")
def bounds(declared: dict[str, list[str]]) -> dict[str, SpecifierSet]:
    """Package -> versions that setup.py allows, for users (``dev`` and ``docs`` left out)."""
    return {
        canonicalize_name(requirement.name): requirement.specifier
        for requirement in map(Requirement, declared["Requires-Dist"])
        if not (is_of_extra(requirement, "dev") or is_of_extra(requirement, "docs"))
    }


def is_of_extra(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is not None and requirement.marker.evaluate({"extra": extra})


def lowest(specifier: SpecifierSet) -> str:
    """The version after ``>=``, or ``==``."""
    (version,) = [one.version for one in specifier if one.operator in (">=", "==")]
    return version


def pinned(python: str, file: str = "constraints.txt") -> dict[str, str]:
    """Package -> exact version that a file names for that Python on Linux."""
    found: dict[str, str] = {}
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} stands twice for Python {python}"
        found[name] = specifier.version
    return found


def test_metadata_names_the_package_and_its_pythons(declared: dict[str, list[str]]) -> None:
    (name,) = declared["Name"]
    assert canonicalize_name(name) == "clab-d2"
    assert declared["Version"] == [clab_d2.__version__]
    (pythons,) = declared["Requires-Python"]
    assert all(python in SpecifierSet(pythons) for python in PYTHONS)
    assert "3.9" not in SpecifierSet(pythons)


def test_every_subpackage_is_installed(declared: dict[str, list[str]]) -> None:
    files = [*(ROOT / "clab_d2").rglob("*.py"), *(ROOT / "clab_d2_cli").rglob("*.py")]
    for folder in {path.parent for path in files}:
        relative = folder.relative_to(ROOT).as_posix()
        assert f"{relative}/__init__.py" in declared["sources"], f"{relative} is not a package"


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_hold_a_version_in_range_of_all_that_is_required(
    declared: dict[str, list[str]], python: str
) -> None:
    versions, of_site = pinned(python), pinned(python, "docs/requirements.txt")
    both = set(versions) & set(of_site)  # installed together
    assert {name: versions[name] for name in both} == {name: of_site[name] for name in both}
    for text in declared["Requires-Dist"]:
        requirement = Requirement(text)  # those of the extra `dev` included
        name = canonicalize_name(requirement.name)
        if any(is_of_extra(requirement, extra) for extra in ("wandb", "mlflow", "ray")):
            continue  # large, and for few: the setup of the tests goes without
        exact = of_site if is_of_extra(requirement, "docs") else versions
        assert name in exact, f"constraints.txt (or docs/requirements.txt) lacks {name}"
        assert exact[name] in requirement.specifier, f"{name}: {exact[name]}"


def third_party_imports(folder: Path) -> dict[str, Path]:
    """Top-level modules imported anywhere in a folder's files -> one of the files."""
    own = {path.stem for path in folder.rglob("*.py")} | {path.name for path in folder.iterdir()}
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                found.setdefault(module.partition(".")[0], path)
    return {
        module: path
        for module, path in found.items()
        if module not in sys.stdlib_module_names | own | {"clab_d2", "clab_d2_cli"}
    }


@pytest.mark.parametrize("folder", ["clab_d2", "clab_d2_cli", "tools", "datasets", "docs"])
def test_what_is_imported_is_declared(
    folder: str, bounds: dict[str, SpecifierSet], declared: dict[str, list[str]]
) -> None:
    # Detectron2 is not on the package index; triton comes with torch, which pins it.
    elsewhere = {"detectron2", "triton"}
    if folder == "docs":  # built with an extra of its own, its pictures made by developers
        for one in map(Requirement, declared["Requires-Dist"]):
            if is_of_extra(one, "docs") or is_of_extra(one, "dev"):
                elsewhere.add(canonicalize_name(one.name).replace("-", "_"))
    imports = third_party_imports(ROOT / folder)
    assert imports
    packages = {"cv2": "opencv-python", "PIL": "pillow", "yaml": "PyYAML"}
    packages["mlflow"] = "mlflow-skinny"
    undeclared = {
        f"{module} ({path.relative_to(ROOT)})"
        for module, path in imports.items()
        if module not in elsewhere and canonicalize_name(packages.get(module, module)) not in bounds
    }
    assert not undeclared, "not in setup.py"


def test_bounds_are_those_that_were_tried(bounds: dict[str, SpecifierSet]) -> None:
    """docs/dependencies.md lists every package, what failed (outside) and what worked (inside)."""
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)`[^|]*\| `(\S+)` \|([^|]*)\|([^|]*)\|", text, re.MULTILINE)
    documented = {canonicalize_name(name): SpecifierSet(bound) for name, bound, _, _ in rows}
    assert documented == bounds
    for name, bound, failed, worked in rows:
        failing, working = (
            [Version(one) for one in re.split(r",\s*", cell.strip()) if one]
            for cell in (failed, worked)
        )
        assert [str(one) for one in failing if one in SpecifierSet(bound)] == [], name
        assert [str(one) for one in working if one not in SpecifierSet(bound)] == [], name
        assert min(working) == Version(lowest(SpecifierSet(bound))), name
        assert [one for one in working if one in failing] == [], name


def test_detectron2_gets_what_it_asks_for(bounds: dict[str, SpecifierSet]) -> None:
    """Its own bounds are not looked at when it is installed, so ours must not be wider."""
    (item,) = [one for one in REQUIREMENTS if one.module == "detectron2"]
    asked: list[str] = []
    for name in item.distributions:
        try:
            asked = importlib.metadata.requires(name) or []
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    requirements = [
        one
        for one in map(Requirement, asked)
        if one.marker is None or one.marker.evaluate({"extra": ""})
    ]
    if not requirements:
        pytest.skip("this Detectron2 has no record of what it needs")
    for one in requirements:
        ours = bounds[canonicalize_name(one.name)]
        assert lowest(ours) in one.specifier, one
        ceilings = {str(part) for part in one.specifier if part.operator in {"<", "<="}}
        assert ceilings <= {str(part) for part in ours}, one


def test_setup_and_check_ask_for_the_same_minimums(declared: dict[str, list[str]]) -> None:
    required = {
        canonicalize_name(Requirement(text).name): Requirement(text).specifier
        for text in declared["Requires-Dist"]
    }
    for item in REQUIREMENTS:
        if item.module == "detectron2":
            continue  # not on the package index, so not declared
        specifier = required[canonicalize_name(item.distributions[0])]
        major, minor = item.minimum
        assert f"{major}.{minor}" in specifier
        assert f"{major}.{minor - 1}" not in specifier


def test_readers_of_videos_ask_for_the_same_pyav(bounds: dict[str, SpecifierSet]) -> None:
    assert lowest(bounds["av"]) == ".".join(map(str, OLDEST_PYAV))


def test_what_is_installed_here_passes() -> None:
    check_requirements()


def test_the_oldest_supported_versions_pass() -> None:
    check_requirements(RECENT)


@pytest.mark.parametrize("version", ["2.14.1+cu130", "3.0", "2.10.0a0+git12ab", UNKNOWN])
def test_versions_compare_as_numbers(version: str) -> None:
    check_requirements(RECENT | {"torch": version})


@pytest.mark.parametrize(
    ("module", "version", "said"),
    [
        ("torch", "2.3.1+cpu", "PyTorch 2.3.1+cpu is too old (need 2.4 or newer): run pip install"),
        ("torch", "1.13.1", "PyTorch 1.13.1 is too old"),
        ("torchvision", None, "torchvision is missing (need 0.19 or newer): run pip install"),
        ("detectron2", None, "Detectron2 is missing (need 0.6 or newer): run clab-d2 install-det"),
        ("detectron2", "0.5", "Detectron2 0.5 is too old"),
        ("pytorch_metric_learning", "2.4.1", "pytorch-metric-learning 2.4.1 is too old"),
    ],
)
def test_missing_or_old_gives_one_line(module: str, version: str | None, said: str) -> None:
    with pytest.raises(ImportError) as error:
        check_requirements(RECENT | {module: version})
    message = str(error.value)
    assert message.startswith(f"clab_d2: {said}")
    assert "\n" not in message and ";" not in message


def test_all_that_is_amiss_is_told_at_once() -> None:
    with pytest.raises(ImportError) as error:
        check_requirements({})
    assert all(item.title in str(error.value) for item in REQUIREMENTS)
    assert "\n" not in str(error.value)


def test_a_library_without_installation_record_counts_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lone_module.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    lone = _requirements.Requirement("Lone", "lone_module", ("lone-module",), (1, 0), "run")
    assert find_version(lone) == UNKNOWN
    gone = _requirements.Requirement("Gone", "gone_module", ("gone-module",), (1, 0), "run")
    assert find_version(gone) is None


def test_import_without_detectron2_says_how_to_get_it() -> None:
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "detectron2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import clab_d2
clab_d2.get_clab_cfg
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: clab_d2: Detectron2 is missing (need 0.6 or newer): "
        "run clab-d2 install-detectron2"
    )
    assert "During handling" not in done.stderr


def test_make_lists_its_targets() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    listed = re.findall(r"^make (\S+)", done.stdout, flags=re.MULTILINE)
    targets = "help venv test demo demo-clip bench study docs lint clean"
    assert listed == targets.split()
