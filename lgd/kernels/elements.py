"""What kernels over the elements of a channels_last map share."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 2048
"""Elements that one program computes."""


@triton.jit
def places(numel, C: tl.constexpr, BLOCK: tl.constexpr):
    """Of a program's elements: their offsets, which of them are inside, and their channels."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = first + tl.arange(0, BLOCK)
    # Divisions of 64-bit integers are slow: one a program.
    channel = ((first % C).to(tl.int32) + tl.arange(0, BLOCK)) % C
    return offsets, offsets < numel, channel


@triton.jit
def relu(values):
    """As torch's, it lets NaN through."""
    return tl.where(values < 0, 0.0, values)
