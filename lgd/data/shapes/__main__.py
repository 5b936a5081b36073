"""Draws a set into a directory, for :mod:`lgd.data.shapes.processor`: ``SPEC DIRECTORY``, the spec as JSON."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

from lgd.data.shapes.generate import write_splits
from lgd.data.shapes.processor import OS_ERROR
from lgd.data.shapes.spec import ShapesSpec


def main(spec: str, directory: str) -> int:
    """The exit status. Ends early when the process that asked has ended: nobody would move what is drawn."""
    parent = os.getppid()
    try:
        write_splits(ShapesSpec(**json.loads(spec)), Path(directory), wanted=lambda: os.getppid() == parent)
    except OSError as error:
        print(error.errno or errno.EIO)
        return OS_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
