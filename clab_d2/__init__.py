"""CLAB and the temporal detectors it stands on, as a Detectron2 extension.

Importing the package registers its models with Detectron2's registries and its datasets with
Detectron2's catalogs.
"""

from clab_d2.config import add_clab_config, get_clab_cfg

__all__ = ["add_clab_config", "get_clab_cfg"]
__version__ = "0.1.0"
