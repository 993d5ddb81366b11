"""Wheel and source distribution: built, installed into an empty folder and used from another."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tiny_videos import make_tiny_videos

import clab_d2
from clab_d2_cli.commands import find_commands

ROOT = Path(__file__).resolve().parents[1]
IN_CHECKOUT = ("clab_d2", "clab_d2_cli", "configs", "datasets", "tools")
CONFIG = "ImageNetVID/clab_R_101_DC5.yaml"


def build(kind: str, source: Path, output: Path) -> Path:
    """Build a "wheel" or "sdist" with the setuptools that is installed; no network."""
    output.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    subprocess.run(
        [sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True
    )
    (built,) = output.iterdir()
    return built


def wheel_content(wheel: Path) -> dict[str, bytes]:
    """Its files but for the list of them."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith("RECORD")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packages are built from: building leaves files in the source folder."""
    copy = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "mini_vid", "ILSVRC")
    for name in IN_CHECKOUT:
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@dataclass
class Installed:
    """The wheel in a folder of its own, and an empty folder to use it from."""

    packages: Path
    elsewhere: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.packages)}
        return subprocess.run(
            list(map(str, command)),
            cwd=self.elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def clab_d2(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The console script."""
        return self.run(self.packages / "bin" / "clab-d2", *arguments)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    packages = tmp_path_factory.mktemp("packages")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--target", str(packages), str(wheel)),
        ],
        check=True,
        capture_output=True,
    )
    return Installed(packages, tmp_path_factory.mktemp("elsewhere"))


def test_source_distribution_builds_the_same_wheel(
    checkout: Path, wheel: Path, tmp_path: Path
) -> None:
    sdist = build("sdist", checkout, tmp_path / "sdist")
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", source, tmp_path / "wheel")
    assert again.name == wheel.name
    assert wheel_content(again) == wheel_content(wheel)


def test_wheel_has_configs_tools_and_the_mark_of_types(wheel: Path) -> None:
    names = set(wheel_content(wheel))
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"clab_d2/configs/{path.relative_to(ROOT / 'configs').as_posix()}" in names
    for command in find_commands().values():
        assert f"clab_d2_cli/tools/{command.module}.py" in names
    assert "clab_d2/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "clab_d2",
        "clab_d2_cli",
        f"clab_d2-{clab_d2.__version__}.dist-info",
    }


def test_help_lists_the_same_commands_as_in_a_checkout(installed: Installed) -> None:
    done = installed.clab_d2("--help")
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in find_commands())
    assert installed.clab_d2("--version").stdout == f"clab_d2 {clab_d2.__version__}\n"


def test_model_zoo_of_the_installed_package(installed: Installed) -> None:
    code = f"""
from clab_d2 import model_zoo
cfg = model_zoo.get_config({CONFIG!r}, ["MODEL.DEVICE", "cpu"])
print(model_zoo.get_config_file({CONFIG!r}))
print(cfg.MODEL.CONTRASTIVE.ENABLED, cfg.MODEL.RESNETS.DEPTH)
print(len(model_zoo.list_configs()))
"""
    done = installed.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    file, values, number = done.stdout.splitlines()
    assert file == str(installed.packages / "clab_d2" / "configs" / CONFIG)
    assert values == "True 101"
    assert int(number) == len(clab_d2.model_zoo.list_configs())


def test_evaluate_with_the_installed_package(installed: Installed) -> None:
    truth = {
        "categories": [{"id": 1, "name": "cat"}],
        "videos": [{"id": 1, "name": "one"}],
        "images": [
            {"id": n + 1, "file_name": f"{n}.jpg", "width": 64, "height": 48, "video_id": 1,
             "frame_id": n}
            for n in range(2)
        ],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400,
             "iscrowd": 0, "instance_id": 1}
            for n in range(2)
        ],
    }  # fmt: skip
    found = [{"image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "score": 0.9}]
    (installed.elsewhere / "truth.json").write_text(json.dumps(truth))
    (installed.elsewhere / "found.json").write_text(json.dumps(found))
    done = installed.clab_d2(
        "evaluate", "--annotations", "truth.json", "--predictions", "found.json",
        "--output", "metrics.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((installed.elsewhere / "metrics.json").read_text())
    assert 45 < metrics["bbox"]["AP50"] < 55  # one of two
    lost = installed.clab_d2("evaluate", "--annotations", "none.json", "--predictions", "x.json")
    assert lost.returncode == 2 and lost.stderr.startswith("error: none.json")


def test_training_in_two_processes_with_the_installed_package(installed: Installed) -> None:
    """They import the tool by its name in the package; the config is one of its own."""
    videos = make_tiny_videos(installed.elsewhere)
    done = installed.clab_d2(
        *("train", "--config-file", "quick_schedules/clab_quick.yaml", "--num-gpus", "2"),
        *("--eval-only", *videos.options, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "World size: 2" in done.stdout
    assert done.stderr.splitlines()[-1] == (
        "error: --eval-only needs weights; add MODEL.WEIGHTS path/to/model_final.pth"
    )


def test_citation_and_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == clab_d2.__version__
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["title"] in readme and paper["authors"][0]["family-names"] in readme
    headings = re.findall(r"^## (\S+?),", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == clab_d2.__version__
