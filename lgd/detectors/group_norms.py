"""GroupNorm under a GPU's autocast that gives a half-precision map for one, with statistics in float32.

Autocast casts a GroupNorm's input to float32 and leaves its result so. The ReLU after it is then float32 too, and what
both keep for the backward pass. Here the result has the input's type, which the convolution after it needs anyway. A
large bfloat16 map is not copied to float32 either; float16's range is too small for the products of the backward pass.
The CPU's autocast casts nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lgd.kernels.usable import MIN_ELEMENTS

DEVICE = "cuda"
"""Type of the device whose autocast casts GroupNorm; tests use the CPU."""


def use(detector: nn.Module) -> None:
    """Replace the forward pass of plain GroupNorms; class, parameters and their names stay."""
    for module in detector.modules():
        target: Any = module
        if type(module) is nn.GroupNorm and module.affine and module.bias is not None:
            target.forward = partial(_forward, module)


def _forward(norm: nn.GroupNorm, *arguments: Any, **named: Any) -> Any:
    x = arguments[0] if len(arguments) == 1 and not named else None
    if not isinstance(x, Tensor) or not _is_cast(x):
        return type(norm).forward(norm, *arguments, **named)
    # Several operators compute the statistics, which takes the host longer than copying a small map. Compiled code
    # makes no copy.
    large = x.dim() == 4 and x.numel() >= MIN_ELEMENTS
    if large and x.dtype is torch.bfloat16 and not torch.compiler.is_compiling():
        return normalize(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return type(norm).forward(norm, x).to(x.dtype)


def _is_cast(x: Tensor) -> bool:
    """Whether autocast would make a float32 copy of ``x``."""
    half = x.dtype is torch.bfloat16 or x.dtype is torch.float16
    return half and x.device.type == DEVICE and torch.is_autocast_enabled(DEVICE)


def normalize(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """GroupNorm of a bfloat16 map (B, C, h, w) with a float32 weight and bias (C); the result is bfloat16.

    Every operator over the map reads and writes bfloat16, and computes in float32 in between.
    """
    found: Tensor = _GroupNorm.apply(x, groups, weight, bias, eps)
    return found


def moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean of ``x`` and of its square over ``dims``, which are kept, in float32 without a float32 copy of ``x``."""
    count = torch.Size([x.shape[i] for i in dims]).numel()
    mean = x.mean(dims, keepdim=True, dtype=torch.float32)
    square = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32).square() / count
    return mean, square


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # Of channels first: a group's channels do not lie in one piece in a channels_last map.
            mean, square = (_mean_of_groups(of_channels, groups) for of_channels in moments(x, (2, 3)))
            inverse = ((square - mean.square()).clamp(min=0) + eps).rsqrt()
            scale = inverse * weight[:, None, None]
            shift = torch.addcmul(bias[:, None, None], mean, scale, value=-1)
            y = torch.addcmul(shift, x, scale, out=torch.empty_like(x))
        ctx.save_for_backward(x, mean, inverse, weight)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        # With g the gradient, y the normed map, w the weight and means over a group:
        # inverse * (g * w - mean(g * w) - y * mean(g * w * y)).
        (g,), (x, mean, inverse, weight) = grads, ctx.saved_tensors
        w = weight[:, None, None]
        with torch.autocast(g.device.type, enabled=False):
            y = torch.addcmul(-mean * inverse, x, inverse, out=torch.empty_like(x))
            of_g = g.mean((2, 3), keepdim=True, dtype=torch.float32)
            of_gy = (g * y).mean((2, 3), keepdim=True, dtype=torch.float32)
            offset, slope = (_mean_of_groups(of_channels * w, ctx.groups) for of_channels in (of_g, of_gy))
            rest = torch.addcmul(-offset * inverse, y, -slope * inverse, out=y)
            dx = torch.addcmul(rest, g, inverse * w, out=torch.empty_like(x))
            cells = x.shape[2] * x.shape[3]
            return dx, None, of_gy.sum((0, 2, 3)) * cells, of_g.sum((0, 2, 3)) * cells, None


def _mean_of_groups(x: Tensor, groups: int) -> Tensor:
    """The mean over each group's channels, for each of them: (B, C, 1, 1) to the same."""
    by_group = x.unflatten(1, (groups, -1))
    return by_group.mean(2, keepdim=True).expand_as(by_group).flatten(1, 2)
