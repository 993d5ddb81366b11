"""CLAB and the temporal detectors it stands on, as a Detectron2 extension.

Importing the package registers its models with Detectron2's registries and its datasets with
Detectron2's catalogs.
"""

import warnings
from typing import TYPE_CHECKING, Any

from clab_d2._requirements import check_requirements

check_requirements()  # before anything that would fail in less clear words

# Said by Detectron2's modules as they are imported; a user can do nothing about it.
warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

from clab_d2 import data, modeling  # noqa: E402, F401  (registers datasets and models)
from clab_d2.config import add_clab_config, extend_config, get_clab_cfg  # noqa: E402
from clab_d2.version import __version__  # noqa: E402

if TYPE_CHECKING:
    from clab_d2 import model_zoo
    from clab_d2.video.detector import VideoDetector
    from clab_d2.video.result import FrameResult

__all__ = [
    "FrameResult",
    "VideoDetector",
    "__version__",
    "add_clab_config",
    "extend_config",
    "get_clab_cfg",
    "model_zoo",
]

# Looked up at first use, so that a training does not import what only detection in videos needs.
_LAZY = {
    "FrameResult": "clab_d2.video.result",
    "VideoDetector": "clab_d2.video.detector",
    "model_zoo": "clab_d2.model_zoo",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LAZY[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
