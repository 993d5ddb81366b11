"""The installer of Detectron2, on made-up wheels and without a network."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"
INFO = "sal_detectron2-0.7.2.dist-info"
METADATA = """Metadata-Version: 2.1
Name: sal-detectron2
Version: 0.7.2
Requires-Dist: numpy<2
Requires-Dist: black
Requires-Dist: black==22.3.0; extra == "dev"
Requires-Dist: yacs>=0.1.8

Requires-Dist: numpy<2
"""


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Shaped like the real one: Python files, a compiled part, a tag for CPython 3.10."""
    files = {
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "compiled",
        "detectron2/__init__.py": '__version__ = "0.7.2"\n',
        "detectron2/a, b.py": "# a name that RECORD has to quote\n",
        "detectron2/engine/__init__.py": "",
        "detectron2/modeling/__init__.py": "",
        "detectron2/data/__init__.py": "",
        f"{INFO}/METADATA": METADATA,
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux\n\n",
        f"{INFO}/RECORD": "detectron2/_C.cpython-310-x86_64-linux-gnu.so,sha256=x,8\n",
    }
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def retagged(script: ModuleType, wheel: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "retagged"
    folder.mkdir()
    return script.retag_wheel(wheel, folder)


def test_retagged_wheel_is_for_any_python_3(retagged: Path) -> None:
    assert retagged.name == "sal_detectron2-0.7.2-py3-none-any.whl"
    with zipfile.ZipFile(retagged) as archive:
        lines = archive.read(f"{INFO}/WHEEL").decode().splitlines()
    assert "Tag: py3-none-any" in lines and "Root-Is-Purelib: true" in lines
    assert not any("cp310" in line or "false" in line for line in lines)


def test_retagged_wheel_has_no_compiled_part_and_all_else(wheel: Path, retagged: Path) -> None:
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(retagged) as after:
        kept = set(after.namelist())
        gone = set(before.namelist()) - kept
        assert gone == {"detectron2/_C.cpython-310-x86_64-linux-gnu.so"}
        for name in kept:
            if name.startswith("detectron2/"):
                assert after.read(name) == before.read(name)


def test_record_lists_every_file_with_its_hash(retagged: Path) -> None:
    with zipfile.ZipFile(retagged) as archive:
        rows = list(csv.reader(io.StringIO(archive.read(f"{INFO}/RECORD").decode())))
        assert [row[0] for row in rows] == archive.namelist()
        for name, recorded, size in rows:
            if name.endswith("/RECORD"):
                assert (recorded, size) == ("", "")
                continue
            data = archive.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
            assert recorded == "sha256=" + digest.rstrip("=")
            assert int(size) == len(data)


def test_metadata_no_longer_asks_for_an_old_numpy(retagged: Path) -> None:
    with zipfile.ZipFile(retagged) as archive:
        header, _, description = archive.read(f"{INFO}/METADATA").decode().partition("\n\n")
    assert [line for line in header.splitlines() if line.startswith("Requires-Dist")] == [
        "Requires-Dist: numpy",
        'Requires-Dist: black==22.3.0; extra == "dev"',
        "Requires-Dist: yacs>=0.1.8",
    ]
    assert description == "Requires-Dist: numpy<2\n"  # prose is not touched


def test_pip_takes_the_retagged_wheel(retagged: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index"),
            *("--target", str(target), str(retagged)),
        ],
        check=True,
    )
    assert (target / "detectron2" / "a, b.py").is_file()
    assert not list(target.rglob("*.so"))


def test_another_file_is_refused(script: ModuleType, wheel: Path) -> None:
    script.check_hash(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(script.InstallError, match="not the file expected and was not installed"):
        script.check_hash(wheel)


def test_a_broken_archive_is_refused(script: ModuleType, tmp_path: Path) -> None:
    broken = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    broken.write_bytes(b"an error page")
    with pytest.raises(script.InstallError, match="not a wheel"):
        script.retag_wheel(broken, tmp_path)


def run_script(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a user runs it, with `site` before the installed packages.

    Should it install something after all, that goes beside `site`: an error here must not cost
    the Detectron2 that the other tests run on.
    """
    elsewhere = str(site.parent / "installed")
    pip_settings = {
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_TARGET": elsewhere,
    }
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={"PATH": "", "PYTHONPATH": str(site), **pip_settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_is_done_where_detectron2_works(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "detectron2" / "__init__.py").write_text('__version__ = "0.6+mine"\n')
    done = run_script(site)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Detectron2 is already there: 0.6+mine")


@pytest.fixture
def absent(tmp_path: Path) -> Path:
    """A folder that, on the path of a Python, makes Detectron2 look as if it were not there."""
    site = tmp_path / "hiding"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'detectron2' else real(name)\n"
    )
    return site


def test_no_network_is_told_in_one_line(absent: Path) -> None:
    done = run_script(absent)
    assert done.returncode == 1
    assert done.stderr == (
        "install_detectron2: could not download sal-detectron2==0.7.2 (is there a network?): "
        "No matching distribution found for sal-detectron2==0.7.2\n"
    )


def test_a_wheel_at_hand_is_checked_too(absent: Path, wheel: Path) -> None:
    done = run_script(absent, "--wheel", str(wheel))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "sal_detectron2-0.7.2-cp310-none-any.whl is not the file expected" in done.stderr
    missing = run_script(absent, "--wheel", str(wheel) + ".gone")
    assert missing.returncode == 1
    assert missing.stderr.endswith(".whl.gone: no such file\n")


def test_a_broken_build_of_the_users_is_left_alone(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "detectron2").mkdir(parents=True)
    (site / "detectron2" / "__init__.py").write_text("import no_such_thing\n")
    info = site / "detectron2-0.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    done = run_script(site, "--wheel", str(wheel))
    assert done.returncode == 1
    assert "mend it, or remove it" in done.stderr
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'no_such_thing'\n")
