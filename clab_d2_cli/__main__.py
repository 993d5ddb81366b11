"""``python -m clab_d2_cli`` is ``clab-d2``, for where the script is not on the PATH."""

import sys

from clab_d2_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
