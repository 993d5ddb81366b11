"""The tools as modules: ``clab_d2_cli.tools.train_net`` is ``tools/train_net.py``.

An installed package has them in this folder, where setup.py puts them. In a checkout they are what
the folders ``tools/`` and ``datasets/`` hold, which are searched as if they were this one.
Processes that a tool starts import it by the same name in both cases.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
if (_CHECKOUT / "tools" / "train_net.py").is_file():
    __path__ += [str(_CHECKOUT / "tools"), str(_CHECKOUT / "datasets")]
