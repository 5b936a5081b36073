"""Where the kernels can be used."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch
from torch import Tensor

from lgd.errors import InputError

VARIABLE = "LGD_TRITON"
"""Environment variable: 0 turns the kernels off."""

DEVICE = "cuda"
"""Type of the device that the kernels compute on; tests use Triton's interpreter on the CPU."""

_turned_off = False

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


MIN_ELEMENTS = 12 * 2**20
"""Elements of the smallest tensor that a kernel saves time on: P4 of 16 images of side 800 has 13.7 million.

A kernel is launched from Python, which takes the host longer than an operator of torch. When maps of every size went
through kernels, LGD's step seems to have waited for the host (docs/performance.md, 27 November).
"""


def turn_off() -> None:
    """Use torch's operators in this process from now on, to compare with."""
    global _turned_off
    _turned_off = True


def usable(*tensors: Tensor, elements: int | None = None, any_size: bool = False) -> bool:
    """Whether the kernels compute on these tensors: all on a GPU on which Triton works, in a floating type of theirs.

    The largest has at least ``MIN_ELEMENTS`` elements, or what becomes of them has as many ``elements``, unless
    ``any_size`` is right. Not while torch traces: torch.compile makes kernels of its own.
    """
    return (
        all(_is_here(x) and x.dtype in DTYPES and x.numel() > 0 for x in tensors)
        and (any_size or (max(x.numel() for x in tensors) if elements is None else elements) >= MIN_ELEMENTS)
        and not _turned_off
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and triton_works()
    )


def _is_here(x: Tensor) -> bool:
    """Whether it is on the device that kernels are launched on: of several GPUs, on the current one."""
    return x.device.type == DEVICE and (DEVICE == "cpu" or x.get_device() == torch.cuda.current_device())


def channels_last(*tensors: Tensor, any_size: bool = False) -> bool:
    """Whether :func:`usable`, and maps (B, C, h, w) whose channels lie next to each other."""
    return all(x.is_contiguous(memory_format=torch.channels_last) for x in tensors) and usable(
        *tensors, any_size=any_size
    )


@functools.cache
def triton_works() -> bool:
    """Whether Triton is installed and compiles here, which takes a C compiler; says once what is missing.

    Raises InputError where ``LGD_TRITON`` is neither 0 nor 1.
    """
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise InputError(f"{VARIABLE}={value}: 0 or 1")
    if value == "0" or importlib.util.find_spec("triton") is None:
        return False
    try:
        # Lazy: Triton is not everywhere, and takes half a second to import.
        from lgd.kernels.affine import affine

        one = torch.ones(1, 1, 1, 1, device=DEVICE)
        affine(one, one.flatten(), one.flatten())
    except torch.OutOfMemoryError:
        raise
    # Whatever it is, from a missing compiler to an unknown GPU, training goes on without.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        logging.getLogger(__name__).warning(
            "Triton does not work here (%s: %s): torch's own operators compute the same, slower",
            type(error).__name__,
            reason[:200],
        )
        return False
    return True
