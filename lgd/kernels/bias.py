"""A convolution's bias and the ReLU after it in one pass, and their gradients in another."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from lgd.kernels.elements import BLOCK, places, relu

ELEMENTS, TILES = 4096, 8
"""Elements that a program of the backward pass holds, about, and how many times as many it adds up."""


def add_bias_(x: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """Add ``bias`` (C,) to ``x`` (B, C, h, w), channels_last, in place, and set negative values to zero with ``relu``.

    Computed in float32; the bias's gradient is a sum in float32.
    """
    found: Tensor = _AddBias.apply(x, bias, relu)
    return found


class _AddBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, with_relu: bool) -> Tensor:
        _add_bias_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            x, bias, x.numel(), C=x.shape[1], BLOCK=BLOCK, RELU=with_relu
        )
        ctx.mark_dirty(x)
        if with_relu:
            ctx.save_for_backward(x)
        ctx.relu, ctx.dtype = with_relu, bias.dtype
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        g = grads[0].contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(g) if ctx.relu else g
        trains = bool(ctx.needs_input_grad[1])
        if not (ctx.relu or trains):
            return g, None, None
        images, channels, height, width = g.shape
        block = triton.next_power_of_2(channels)
        rows = max(1, ELEMENTS // block)
        programs = triton.cdiv(images * height * width, rows * TILES)
        sums = torch.empty(programs, channels, dtype=torch.float32, device=g.device)
        _bias_backward_kernel[(programs,)](
            *(g, ctx.saved_tensors[0] if ctx.relu else g, dx, sums, images * height * width),
            C=channels, ROWS=rows, BLOCK_C=block, COUNT=TILES, RELU=ctx.relu, SUM=trains,
        )  # fmt: skip
        return dx, sums.sum(0).to(ctx.dtype) if trains else None, None


@triton.jit
def _add_bias_kernel(x, bias, numel, C: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr):
    offsets, inside, channel = places(numel, C, BLOCK)
    found = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    if RELU:
        found = relu(found)
    tl.store(x + offsets, found.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _bias_backward_kernel(
    g, y, dx, sums, cells, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    COUNT: tl.constexpr, RELU: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for tile in range(COUNT):
        row = (tl.program_id(0) * COUNT + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row < cells)[:, None] & (channel < C)[None, :]
        offsets = row.to(tl.int64)[:, None] * C + channel[None, :]
        gradient = tl.load(g + offsets, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            gradient = tl.where(tl.load(y + offsets, mask=inside, other=0.0).to(tl.float32) > 0, gradient, 0.0)
            tl.store(dx + offsets, gradient.to(dx.dtype.element_ty), mask=inside)
        if SUM:
            total += tl.sum(gradient, axis=0)
    if SUM:
        tl.store(sums + tl.program_id(0) * C + channel, total, mask=channel < C)
