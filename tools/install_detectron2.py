#!/usr/bin/env python3
"""Install Detectron2 into the Python that runs this script.

    python tools/install_detectron2.py [--wheel FILE]

Detectron2 has no release of its own name on the package index, and building it takes a compiler.
sal-detectron2 0.7.2 is a release of the same Python files, tagged for CPython 3.10 only, because of
a compiled part that clab_d2 has no use for: RoIAlign and NMS are torchvision's, and Detectron2 puts
stubs in the place of the rest. So this script downloads that wheel with pip, checks its hash,
leaves the compiled part out, tags the rest for any Python 3, and installs it.

It does nothing where Detectron2 can be imported already, one built from its source included.
What Detectron2 itself needs comes with clab_d2's own requirements, so install those first.
Needs the standard library and pip alone.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

DISTRIBUTION = "sal-detectron2"
VERSION = "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"

# Goes further than `import detectron2`, which loads next to nothing.
PROBE = """
import importlib.util, sys
spec = importlib.util.find_spec("detectron2")
if spec is None or not spec.origin:
    sys.exit(3)
import detectron2, detectron2.engine, detectron2.modeling, detectron2.data
print(detectron2.__version__, spec.origin)
"""
PROBE_ABSENT = 3


class InstallError(Exception):
    """What went wrong, in one line for the user."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the present Python in an empty folder.

    Elsewhere, a checkout of Detectron2 in the current folder would pass for the package.
    """
    with tempfile.TemporaryDirectory() as empty:
        return subprocess.run(
            [sys.executable, *arguments], cwd=empty, capture_output=True, text=True, check=False
        )


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # pip prints notices about itself after its errors
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")


def pip(*arguments: str, failure: str) -> None:
    """Run pip quietly.

    Raises:
        InstallError: `failure` and pip's last words.
    """
    done = run_python("-m", "pip", *arguments, "--disable-pip-version-check")
    if done.returncode != 0:
        raise InstallError(f"{failure}: {last_line(done.stderr)}")


def download_wheel(folder: Path) -> Path:
    """Fetch the wheel, from wherever this machine's pip gets its packages."""
    requirement = f"{DISTRIBUTION}=={VERSION}"
    pip(
        *("download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.10"),
        *("--dest", str(folder), requirement),
        failure=f"could not download {requirement} (is there a network?)",
    )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise InstallError(f"pip downloaded no wheel of {requirement}")
    return wheels[0]


def check_hash(wheel: Path, expected: str = SHA256) -> None:
    """Refuse a wheel other than the one that was looked at.

    Raises:
        InstallError: the SHA-256 differs.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(
            f"{wheel.name} is not the file expected and was not installed: "
            f"its SHA-256 is {found}, not {expected}"
        )


def retag_wheel(wheel: Path, folder: Path) -> Path:
    """Write a wheel that any Python 3 takes, without the compiled parts, and return its path.

    Two needs that only its makers have are dropped from the metadata, lest pip complain ever
    after: a NumPy below 2 (for the compiled part) and the formatter black.

    Raises:
        InstallError: `wheel` is not a wheel.
    """
    name, version = wheel.name.split("-")[:2]
    result = folder / f"{name}-{version}-py3-none-any.whl"
    try:
        with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(result, "w") as target:
            records = []
            for item in source.infolist():
                path = PurePosixPath(item.filename)
                in_dist_info = path.parent.name == f"{name}-{version}.dist-info"
                if item.is_dir() or path.suffix in {".so", ".pyd", ".dylib"}:
                    continue
                if in_dist_info and path.name == "RECORD":
                    continue
                data = source.read(item)
                if in_dist_info and path.name == "WHEEL":
                    data = _any_python(data)
                elif in_dist_info and path.name == "METADATA":
                    data = _relax_metadata(data)
                target.writestr(item, data, zipfile.ZIP_DEFLATED)
                records.append((item.filename, _record_hash(data), len(data)))
            record_name = f"{name}-{version}.dist-info/RECORD"
            target.writestr(record_name, _record_file([*records, (record_name, "", "")]))
    except zipfile.BadZipFile:
        raise InstallError(f"{wheel}: not a wheel") from None
    return result


def _any_python(wheel_file: bytes) -> bytes:
    kept = [
        line
        for line in wheel_file.decode().splitlines()
        if line and not line.startswith(("Tag:", "Root-Is-Purelib:"))
    ]
    return "\n".join([*kept, "Root-Is-Purelib: true", "Tag: py3-none-any", ""]).encode()


def _relax_metadata(metadata: bytes) -> bytes:
    header, blank, description = metadata.partition(b"\n\n")
    lines = []
    for line in header.split(b"\n"):
        if line.strip() == b"Requires-Dist: black":
            continue
        if line.strip() == b"Requires-Dist: numpy<2":
            line = b"Requires-Dist: numpy"
        lines.append(line)
    return b"\n".join(lines) + blank + description


def _record_hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


def _record_file(records: list[tuple[str, str, int | str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(records)
    return text.getvalue()


def is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def install(wheel: Path | None) -> str:
    """Install Detectron2 unless it works already, and return a line on what there is now.

    Args:
        wheel: a downloaded wheel of `DISTRIBUTION`; None: download it.

    Raises:
        InstallError: with the reason in one line.
    """
    probe = run_python("-c", PROBE)
    if probe.returncode == 0:
        return f"Detectron2 is already there: {probe.stdout.strip()}"
    if probe.returncode != PROBE_ABSENT and is_installed("detectron2"):
        # The user's own build: not for us to overwrite.
        raise InstallError(
            "there is a Detectron2 here that can't be imported; mend it, or remove it with "
            f'"pip uninstall detectron2" and run this again: {last_line(probe.stderr)}'
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if wheel is None:
            wheel = download_wheel(folder)
        elif not wheel.is_file():
            raise InstallError(f"{wheel}: no such file")
        check_hash(wheel)
        retagged = retag_wheel(wheel.resolve(), folder)
        pip(
            *("install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"),
            str(retagged),
            failure="pip could not install Detectron2",
        )
    probe = run_python("-c", PROBE)
    if probe.returncode != 0:
        raise InstallError(
            "Detectron2 is installed, but what it needs is not all there (install clab_d2's "
            f'requirements with "pip install -e ."): {last_line(probe.stderr)}'
        )
    return f"Detectron2 installed: {probe.stdout.strip()}"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Install Detectron2 into this Python.")
    parser.add_argument(
        "--wheel", type=Path, help=f"a wheel of {DISTRIBUTION} {VERSION} at hand, not downloaded"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    try:
        print(install(arguments.wheel))
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
