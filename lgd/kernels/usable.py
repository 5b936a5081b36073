"""Where the kernels can be used."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch
from torch import Tensor

VARIABLE = "LGD_TRITON"
"""Environment variable: 0 turns the kernels off."""

_turned_off = False

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def turn_off() -> None:
    """Use torch's operators in this process from now on, to compare with."""
    global _turned_off
    _turned_off = True


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels compute on these tensors: all on a GPU on which Triton works, in a floating type of theirs.

    Not while torch.compile traces, which makes kernels of its own.
    """
    return (
        all(x.is_cuda and x.dtype in DTYPES and x.numel() > 0 for x in tensors)
        and not _turned_off
        and not torch.compiler.is_compiling()
        and triton_works()
    )


def channels_last(*tensors: Tensor) -> bool:
    """Whether :func:`usable`, and maps (B, C, h, w) whose channels lie next to each other."""
    return all(x.is_contiguous(memory_format=torch.channels_last) for x in tensors) and usable(*tensors)


@functools.cache
def triton_works() -> bool:
    """Whether Triton is installed and compiles here, which takes a C compiler; says once what is missing."""
    if os.environ.get(VARIABLE, "1") == "0" or importlib.util.find_spec("triton") is None:
        return False
    try:
        # Lazy: Triton is not everywhere, and takes half a second to import.
        from lgd.kernels.affine import affine

        one = torch.ones(1, 1, 1, 1, device="cuda")
        affine(one, one.flatten(), one.flatten())
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
