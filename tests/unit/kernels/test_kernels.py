"""What the Triton kernels compute, in Triton's interpreter on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent

ROOT = HERE.parents[2]


def _run(script: str, *arguments: str, **environment: str) -> Any:
    return json.loads(_printed(script, *arguments, **environment))


def _printed(script: str, *arguments: str, given: str = "", **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        input=given,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def _one_each(launches: list[str]) -> list[str]:
    """One launch of each kernel with each set of its switches, whatever its sizes."""
    found = {}
    for launch in launches:
        module, name, _, constants = json.loads(launch)
        switches = {key: x for key, x in constants.items() if isinstance(x, bool)}
        found[json.dumps([module, name, switches])] = launch
    return list(found.values())


def _check(found: dict[str, float]) -> None:
    # Of float32 the rounding of a sum, of bfloat16 that of a result, which the interpreter cuts off.
    assert {case: x for case, x in found.items() if not x < (8e-3 if "bfloat16" in case else 3e-6)} == {}


@pytest.mark.slow
def test_they_are_torchs_operators_in_triton_s_interpreter() -> None:
    pytest.importorskip("triton")
    found = _run("interpreted.py", "cpu", TRITON_INTERPRET="1")
    assert len(found) == (4 + 2) * 13 + 2
    _check(found)


@pytest.mark.slow
def test_a_step_with_them_has_the_same_losses_and_gradients_and_they_compile_for_a_gpu() -> None:
    pytest.importorskip("triton")
    found = _run("interpreted_step.py", TRITON_INTERPRET="1")
    assert {detector: x for detector, x in found["differences"].items() if not x < 1e-5} == {}
    assert len(found["differences"]) == 2
    kernels = "affine affine_backward add_bias bias_backward loss part_statistics merge apply slopes gradient"
    more = "difference distance_gradient nms pool pool_backward"
    launched = {json.loads(x)[1] for x in found["launched"]}
    assert launched == {f"_{x}_kernel" for x in f"{kernels} {more}".split()}
    compiled = _printed("compiled.py", given=json.dumps(_one_each(found["launched"]))).split()
    assert {*compiled} == launched


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_they_are_torchs_operators_on_a_gpu() -> None:
    _check(_run("interpreted.py", "cuda"))
