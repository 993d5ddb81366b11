"""CLAB and the temporal detectors it stands on, as a Detectron2 extension.

Importing the package registers its models with Detectron2's registries and its datasets with
Detectron2's catalogs.
"""

import warnings

from clab_d2._requirements import check_requirements

check_requirements()  # before anything that would fail in less clear words

# Said by Detectron2's modules as they are imported; a user can do nothing about it.
warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

from clab_d2 import data, modeling  # noqa: E402, F401  (registers datasets and models)
from clab_d2.config import add_clab_config, extend_config, get_clab_cfg  # noqa: E402

__all__ = ["add_clab_config", "extend_config", "get_clab_cfg"]
__version__ = "0.1.0"
