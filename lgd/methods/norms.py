"""Normalisations without learnt parameters, with float32 statistics whatever the precision around them.

Given half precision, torch's own kernels would keep mean and deviation in it, which shifts a whole map by up to half a
percent. A float32 copy of the map would be exact, and is what float16 gets; in bfloat16, whose range is float32's, only
the statistics are float32, and no copy is made. On a GPU lgd/kernels/norms.py does so in every precision.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lgd.detectors.group_norms import moments
from lgd.kernels.usable import channels_last

EPS = 1e-5


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension of (..., C)."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype)


def group_norm(x: Tensor, *, relu: bool = False) -> Tensor:
    """GroupNorm with one group over (C, h, w) of each image of (B, C, h, w), and ReLU on request."""
    if channels_last(x):
        # Lazy, as everywhere: Triton is not installed everywhere.
        from lgd.kernels.norms import normalize

        return normalize(x, EPS, group=True, relu=relu)
    if _by_statistics(x):
        normed: Tensor = _Normalized.apply(x, (1, 2, 3))
    else:
        normed = F.group_norm(x.float(), 1, eps=EPS).to(x.dtype)
    return normed.relu() if relu else normed


def instance_norm(x: Tensor) -> Tensor:
    """InstanceNorm over (h, w) of each channel of (B, C, h, w); float32, but for bfloat16, whose own it is.

    A 1 x 1 map has nothing to normalise and becomes zero, as the formula says; torch's own refuses it.
    """
    if _by_statistics(x):
        return _Normalized.apply(x, (2, 3))
    if x.shape[-2:].numel() == 1:
        return x.float() * 0.0
    return F.instance_norm(x.float(), eps=EPS)


def instance_norm_distance(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the squared differences of two instance-normed maps (B, C, h, w), float32; ``y`` gets no gradient."""
    if channels_last(x, y):
        from lgd.kernels.norms import normalized_square_distance

        return normalized_square_distance(x, y, EPS)
    return square_sum(instance_norm(x) - instance_norm(y.detach()))


def square_sum(x: Tensor) -> Tensor:
    """Sum of squares of all elements, float32, without a float32 copy of half precision."""
    if x.dtype is torch.float32:
        return x.square().sum()
    return torch.linalg.vector_norm(x, dtype=torch.float32).square()


def _by_statistics(x: Tensor) -> bool:
    # A compiled norm makes no copy anyway.
    return x.dtype is torch.bfloat16 and not torch.compiler.is_compiling()


class _Normalized(torch.autograd.Function):
    """(x - mean) / sqrt(variance + EPS) over some dimensions of a bfloat16 tensor; the result is bfloat16.

    Every operator reads bfloat16 and writes bfloat16, and computes in float32 in between, for the statistics that it
    reads beside are float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            mean, square = moments(x, dims)
            scale = ((square - mean.square()).clamp(min=0) + EPS).rsqrt()
            y = torch.addcmul(-mean * scale, x, scale, out=torch.empty_like(x))
        ctx.save_for_backward(y, scale)
        ctx.dims = dims
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # With g the gradient: scale * (g - mean(g) - y * mean(g * y)).
        (g,), (y, scale) = grads, ctx.saved_tensors
        with torch.autocast(g.device.type, enabled=False):
            mean = g.mean(ctx.dims, keepdim=True, dtype=torch.float32)
            slope = (g * y).mean(ctx.dims, keepdim=True, dtype=torch.float32)
            rest = torch.addcmul(-mean, y, -slope, out=torch.empty_like(g))
            return torch.mul(g + rest, scale, out=torch.empty_like(g)), None


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which operations on the device of ``x`` keep the types of their inputs."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
