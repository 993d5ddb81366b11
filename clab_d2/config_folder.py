"""Where the configs lie that come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path, PurePosixPath

from clab_d2.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def config_folder() -> Path:
    """``clab_d2/configs`` of an installed package, the folder ``configs`` of a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def list_configs() -> list[str]:
    """The names of all configs but the bases of others, such as ``"MiniVID/clab.yaml"``."""
    folder = config_folder()
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.yaml")
        if not path.name.startswith("Base-")
    )


def find_config(name: str) -> Path:
    """The path of a config of the package.

    Args:
        name: its path in the folder ``configs``; that folder's name before it and ``.yaml`` behind
            it count for nothing.

    Raises:
        ConfigError: there is none of that name; names the most similar ones.
    """
    parts = PurePosixPath(name).parts
    wanted = PurePosixPath(*parts[parts[:1] == ("configs",) :])
    if wanted.name and not wanted.is_absolute() and ".." not in wanted.parts:
        for relative in (wanted, wanted.with_name(f"{wanted.name}.yaml")):
            path = config_folder() / relative
            if path.suffix == ".yaml" and path.is_file():
                return path
    near = difflib.get_close_matches(str(wanted), list_configs(), n=3, cutoff=0.5)
    hint = f"; similar ones: {', '.join(near)}" if near else "; clab-d2 configs lists them"
    raise ConfigError(f"there is no config {name} in the package{hint}")
