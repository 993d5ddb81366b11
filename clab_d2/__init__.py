"""CLAB and the temporal detectors it stands on, as a Detectron2 extension.

Importing the package registers its models with Detectron2's registries and its datasets with
Detectron2's catalogs. Where PyTorch or Detectron2 is missing it can still run exported models
(docs/export.md); all else says what is missing when it is asked for.
"""

import warnings
from typing import TYPE_CHECKING

from clab_d2._lazy import lazy_names
from clab_d2._requirements import check_requirements, is_complete
from clab_d2.version import __version__

if is_complete():
    check_requirements()  # before anything that would fail in less clear words

    # Said by Detectron2's modules as they are imported; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

    from clab_d2 import modeling  # noqa: F401  (registers models)
    from clab_d2.data.imagenet_vid import register_builtin_datasets

    register_builtin_datasets()

if TYPE_CHECKING:
    from clab_d2 import model_zoo
    from clab_d2.config import add_clab_config, extend_config, get_clab_cfg
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

# A training does not import what only detection in videos needs.
__getattr__ = lazy_names(
    __name__,
    {
        "FrameResult": "clab_d2.video.result",
        "VideoDetector": "clab_d2.video.detector",
        "add_clab_config": "clab_d2.config",
        "extend_config": "clab_d2.config",
        "get_clab_cfg": "clab_d2.config",
        "model_zoo": "clab_d2.model_zoo",
    },
    without_torch=frozenset({"FrameResult", "VideoDetector"}),
)
