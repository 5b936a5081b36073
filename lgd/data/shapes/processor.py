"""Equal pixels on every x86-64 processor.

Where a processor has AVX-512, numpy computes sines and the like by other code, and the last bits of its results
differ. Pixels would differ by them, and so would the fingerprint of the data: a sweep could not go on on another
machine. numpy decides when it is imported, so that a process of its own draws without AVX-512. On other
architectures (ARM) the last bits are that architecture's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lgd.data.shapes.spec import ShapesSpec
from lgd.errors import InputError

DISABLE = "NPY_DISABLE_CPU_FEATURES"
"""Environment variable of numpy: what it shall not use, by name."""

MODULE = "lgd.data.shapes"

OS_ERROR = 3
"""Exit status of the process when the disk is at fault; it prints the errno."""


def avx512_features() -> list[str]:
    """What numpy uses here beyond AVX2, by the names of :data:`DISABLE`; what it was built on cannot be turned off."""
    found: list[str] = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return [x for x in found if x.startswith(("AVX512", "X86_V4"))]


def draw_in_process(spec: ShapesSpec, directory: Path, disabled: list[str]) -> None:
    """Draw the set into ``directory`` in a process whose numpy does without ``disabled``.

    Raises OSError as that process does, and InputError, one line, where it ends otherwise.
    """
    # As this process finds its packages. Ctrl-C reaches this process alone, which then ends the other.
    path = os.pathsep.join(x for x in sys.path if x)
    before = os.environ.get(DISABLE, "").replace(",", " ").split()
    environment = {**os.environ, "PYTHONPATH": path, DISABLE: " ".join([*before, *disabled])}
    done = subprocess.run(
        [sys.executable, "-m", MODULE, json.dumps(asdict(spec)), str(directory)],
        env=environment, start_new_session=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == OS_ERROR:
        number = int(done.stdout)
        raise OSError(number, os.strerror(number))
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise InputError(f"drawing the default data ended with {done.returncode}: {said[-1] if said else 'no word'}")
