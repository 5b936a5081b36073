"""Scale, shift, a residual and ReLU of a feature map in one pass: what follows a convolution with a frozen norm."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from lgd.kernels.elements import BLOCK, places, relu


def affine(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``x * scale + shift + residual``, its negative values zero with ``relu``; computed in float32, in ``x``'s type.

    x, residual: (B, C, h, w), channels_last, of one type. scale, shift: (C,) float32, which get no gradient.
    """
    found: Tensor = _Affine.apply(x, scale, shift, residual, relu)
    return found


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, with_relu: bool) -> Tensor:
        y = torch.empty_like(x)
        has_residual = residual is not None
        _affine_kernel[_grid(x)](
            *(x, x if residual is None else residual, scale, shift, y, x.numel()),
            C=x.shape[1], BLOCK=BLOCK, RESIDUAL=has_residual, RELU=with_relu,
        )  # fmt: skip
        ctx.save_for_backward(scale, *([y] if with_relu else []))
        ctx.has_residual, ctx.relu = has_residual, with_relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None]:
        scale, *rest = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        needs_residual = ctx.has_residual and ctx.needs_input_grad[3]
        dx = torch.empty_like(g)
        dresidual = torch.empty_like(g) if needs_residual and ctx.relu else g
        _affine_backward_kernel[_grid(g)](
            *(g, rest[0] if ctx.relu else g, scale, dx, dresidual, g.numel()),
            C=g.shape[1], BLOCK=BLOCK, RESIDUAL=needs_residual and ctx.relu, RELU=ctx.relu,
        )  # fmt: skip
        return dx, None, None, dresidual if needs_residual else None, None


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)


@triton.jit
def _affine_kernel(
    x, residual, scale, shift, y, numel,
    C: tl.constexpr, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    offsets, inside, channel = places(numel, C, BLOCK)
    found = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    found = found * tl.load(scale + channel) + tl.load(shift + channel)
    if RESIDUAL:
        found += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        found = relu(found)
    tl.store(y + offsets, found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _affine_backward_kernel(
    g, y, scale, dx, dresidual, numel,
    C: tl.constexpr, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    offsets, inside, channel = places(numel, C, BLOCK)
    found = tl.load(g + offsets, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        found = tl.where(tl.load(y + offsets, mask=inside, other=0.0).to(tl.float32) > 0, found, 0.0)
    if RESIDUAL:
        tl.store(dresidual + offsets, found.to(dresidual.dtype.element_ty), mask=inside)
    found = found * tl.load(scale + channel)
    tl.store(dx + offsets, found.to(dx.dtype.element_ty), mask=inside)
