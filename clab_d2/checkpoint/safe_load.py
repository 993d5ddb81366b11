"""Read a file of weights without letting it run code.

A checkpoint is a pickle, and a pickle may name any function to call while it is read. Here only
tensors, numpy arrays and plain Python values are admitted, whatever the file's extension says. A
``.safetensors`` file holds nothing else to begin with.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from clab_d2.checkpoint.safetensors_file import is_safetensors, parse_safetensors
from clab_d2.errors import DataError
from clab_d2.io import refuse_special_file

_ZIP_MAGIC = b"PK\x03\x04"
# What torch.save wrote before its zip format: the pickled number 0x1950a86a20f9469cfc6c, by any
# pickle protocol from 2 on (a protocol-4 pickle has a frame header in between).
_LEGACY_TORCH_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


def load_weights_file(path: str | os.PathLike[str], trusted: bool = False) -> dict[str, Any]:
    """Read a ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` file of weights, onto the CPU.

    PyTorch files, zip or older, are read by ``torch.load(weights_only=True)``; any other pickle,
    such as those of Detectron2's model zoo, by an unpickler that admits numpy arrays and built-in
    values only. The file's first bytes decide which, so a renamed file is no way around it.

    Args:
        path: the local file.
        trusted: True reads the file with the ordinary unpickler, which runs any code it holds.

    Returns:
        The dict that was saved, as it is: tensors stay tensors, numpy arrays stay arrays. Of a
        safetensors file ``{"model": tensors}``, and its texts under "metadata" if it has any.

    Raises:
        DataError: one line that names the file and the remedy, where it is missing, empty,
            truncated, no file of weights, or would run code and is not trusted.
    """
    path = Path(path)
    refuse_special_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
            file.seek(0)
            if not head:
                raise DataError(f"{path}: the file is empty; fetch it again")
            if is_safetensors(head, os.fstat(file.fileno()).st_size):
                return _read_safetensors(file, path)
            is_torch = head.startswith(_ZIP_MAGIC) or _LEGACY_TORCH_MAGIC in head
            if not is_torch and not head.startswith(b"\x80"):
                raise DataError(
                    f"{path}: neither a PyTorch file nor a pickle nor safetensors; give a .pth, "
                    ".pt, .pkl or .safetensors file of weights, and the whole of it (a download "
                    "page saved under that name is a common cause)"
                )
            content = _read_torch(file, path, trusted) if is_torch else _read(file, path, trusted)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path of the weights") from None
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: can't be read ({reason}); check the path and rights") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {type(content).__name__}, not a dict of weights; save the model's "
            "state_dict() instead"
        )
    return content


def _read_safetensors(file: IO[bytes], path: Path) -> dict[str, Any]:
    try:
        tensors, metadata = parse_safetensors(file.read())
    except OSError:
        raise
    except Exception as error:  # anything may come out of a broken file
        raise _damaged(path, error) from None
    return {"model": tensors, **({"metadata": metadata} if metadata else {})}


def _check_zip(file: IO[bytes], path: Path) -> None:
    """Name the zip archives that are whole, but not what torch.save writes."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError):
        return  # damaged, which is told where it is read
    finally:
        file.seek(0)
    if "data.pkl" not in names:
        raise DataError(f"{path}: a zip archive, but none of weights; unpack it, or give another")
    if "constants.pkl" in names:
        raise DataError(
            f"{path}: a TorchScript program rather than weights; save its state_dict() instead"
        )


def _read_torch(file: IO[bytes], path: Path, trusted: bool) -> Any:
    _check_zip(file, path)
    try:
        # torch.load warns about the formats of old files; they load all the same.
        with warnings.catch_warnings(), _numpy_admitted():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        if "unsupported" not in str(error).lower():
            raise _damaged(path, error) from None
        found = re.search(r"(?i:unsupported (?:class|global:?))(?: GLOBAL)? ([\w.]+)", str(error))
        raise _would_run_code(path, found.group(1) if found else None) from None
    except Exception as error:
        # Anything may come out of a broken file; out of a trusted one, out of its own code too.
        raise _damaged(path, error) from None


def _read(file: IO[bytes], path: Path, trusted: bool) -> Any:
    try:
        # latin1 is how pickles of numpy arrays written by Python 2 are read.
        if trusted:
            return pickle.load(file, encoding="latin1")
        return _ArraysOnlyUnpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise _would_run_code(path, str(error)) from None
    except Exception as error:
        raise _damaged(path, error) from None


class _Refused(Exception):
    """A pickle names something that is not on the list of what may be built."""


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """What pickles of protocol 2 call to make bytes; no other codec is needed, or admitted."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


def _numpy_builders() -> dict[tuple[str, str], Any]:
    """How numpy's arrays and scalars are spelled in pickles, by numpy 1 and by numpy 2."""
    # Taken from the arrays' own reductions: the module they live in differs between versions.
    rebuild_array = np.zeros(1).__reduce__()[0]
    rebuild_scalar = np.float64(0).__reduce__()[0]
    builders: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        builders[module, "_reconstruct"] = rebuild_array
        builders[module, "scalar"] = rebuild_scalar
    return builders


class _ArraysOnlyUnpickler(pickle.Unpickler):
    _ADMITTED: dict[tuple[str, str], Any] = {
        **_numpy_builders(),
        ("_codecs", "encode"): _encode_latin1,
        ("collections", "OrderedDict"): OrderedDict,
        # Python 2's name for the module, which pickles of protocol 2 still use.
        **{
            (module, kind.__name__): kind
            for module in ("builtins", "__builtin__")
            for kind in (set, frozenset, complex)
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def _numpy_admitted() -> AbstractContextManager[Any]:
    """Let numpy's arrays and scalars pass ``weights_only``: training states often hold a few."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (
        2,
        6,
    ):  # these can't be admitted under another module's name
        return nullcontext()
    named = [(item, f"{module}.{name}") for (module, name), item in _numpy_builders().items()]
    types = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return torch.serialization.safe_globals([*named, *types])


def _would_run_code(path: Path, what: str | None) -> DataError:
    named = f" ({what})" if what else ""
    return DataError(
        f"{path}: holds more than tensors and plain values{named}, and so could run code while it "
        "is read; if you trust its source, convert it with tools/convert_checkpoint.py --trust"
    )


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else ""
    detail = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return DataError(
        f"{path}: can't be read as weights, it is truncated or damaged ({detail}); fetch it again"
    )
