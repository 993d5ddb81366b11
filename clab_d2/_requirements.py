"""Whether what the package stands on is there and new enough, told in one line where it is not.

Without this, a missing or old library shows as a traceback out of the middle of an import, or,
worse, as a loss of another scale.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Requirement:
    """One library that the package can't do without.

    Attributes:
        title: its name as people write it.
        module: what is imported.
        distributions: names under which it may be installed, in the order to look.
        minimum: the oldest version that serves, (major, minor).
        remedy: a command that mends its absence.
    """

    title: str
    module: str
    distributions: tuple[str, ...]
    minimum: tuple[int, int]
    remedy: str


REQUIREMENTS = (
    Requirement("PyTorch", "torch", ("torch",), (2, 4), 'pip install "torch>=2.4"'),
    Requirement(
        "torchvision", "torchvision", ("torchvision",), (0, 19), 'pip install "torchvision>=0.19"'
    ),
    # facebookresearch's builds and releases made of them all say 0.6 or more.
    Requirement(
        "Detectron2",
        "detectron2",
        ("detectron2", "sal-detectron2"),
        (0, 6),
        "clab-d2 install-detectron2",
    ),
    # Its distributed wrapper multiplies the loss by the number of processes, which the
    # contrastive branch counts on. 2.0.1 and all later ones looked at (to 2.9) do.
    Requirement(
        "pytorch-metric-learning",
        "pytorch_metric_learning",
        ("pytorch-metric-learning",),
        (2, 5),
        'pip install "pytorch-metric-learning>=2.5"',
    ),
)

#: Stands for the version of a library that is importable but not installed (on PYTHONPATH, say).
UNKNOWN = "unknown"


def find_version(requirement: Requirement) -> str | None:
    """The installed version of a library, found without importing it.

    Returns:
        Its version, ``UNKNOWN`` where it can be imported but no record of its installation
        exists, or None where it can't be imported.
    """
    try:
        if importlib.util.find_spec(requirement.module) is None:
            return None
    except (ImportError, ValueError):
        return None
    for distribution in requirement.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return UNKNOWN


def is_complete() -> bool:
    """Whether every library that the package needs is there, old or new."""
    return all(find_version(item) is not None for item in REQUIREMENTS)


def check_requirements(found: Mapping[str, str | None] | None = None) -> None:
    """Refuse to go on without the libraries that the package needs.

    Args:
        found: version of each library by module name, None where it is missing; default: what
            is installed. A version that can't be read as numbers is taken for new enough.

    Raises:
        ImportError: one line that names each library missing or too old, and the remedy.
    """
    if found is None:
        found = {item.module: find_version(item) for item in REQUIREMENTS}
    complaints = []
    for item in REQUIREMENTS:
        version = found.get(item.module)
        minimum = ".".join(map(str, item.minimum))
        if version is None:
            state = "is missing"
        elif _is_older(version, item.minimum):
            state = f"{version} is too old"
        else:
            continue
        complaints.append(f"{item.title} {state} (need {minimum} or newer): run {item.remedy}")
    if complaints:
        raise ImportError("clab_d2: " + "; ".join(complaints))


def _is_older(version: str, minimum: tuple[int, int]) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < minimum
