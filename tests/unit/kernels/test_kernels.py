"""What the Triton kernels compute, in Triton's interpreter on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("interpreted.py")

ROOT = SCRIPT.parents[3]


def _differences(device: str, **environment: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), device],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _check(found: dict[str, float]) -> None:
    # Of float32 the rounding of a sum, of bfloat16 that of a result, which the interpreter cuts off.
    assert {case: x for case, x in found.items() if not x < (8e-3 if "bfloat16" in case else 3e-6)} == {}


def test_they_are_torchs_operators_in_triton_s_interpreter() -> None:
    pytest.importorskip("triton")
    found = _differences("cpu", TRITON_INTERPRET="1")
    assert len(found) == (4 + 2) * 13 + 2
    _check(found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_they_are_torchs_operators_on_a_gpu() -> None:
    _check(_differences("cuda"))
