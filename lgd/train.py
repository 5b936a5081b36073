"""``python -m lgd.train``: the same as ``lgd train`` (see lgd/training/__main__.py)."""

import sys

from lgd.training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
