"""Sphinx's configuration of the documentation site; `make docs` builds it.

The source folder is the repository itself, so that links between README.md, docs/ and datasets/
are links between pages of the site, as they are between files on GitHub.
"""

import re
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore")  # of what autodoc imports

project = "clab_d2"
author = "the authors of clab_d2"
copyright = author
release = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "clab_d2" / "version.py").read_text(), re.MULTILINE
)[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "config_reference",
    "notebook_pages",
]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/study/*/table.md",
    "docs/notebooks/*.ipynb",
    "datasets/README.md",
    "datasets/real_clips/README.md",
]
exclude_patterns = ["output", ".venv", "build", "dist", "**/.*", "tests"]

myst_enable_extensions = ["dollarmath"]
# GitHub's anchors
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]

napoleon_use_ivar = True
autodoc_default_options = {"members": True, "show-inheritance": True, "undoc-members": False}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_inherit_docstrings = False

html_theme = "furo"
html_title = "clab_d2"
