"""Convolutions of timm's networks in forms that take less time and compute the same.

A frozen batch norm multiplies and shifts each channel by numbers that do not change. The convolution before it does the
same with scaled weights and a bias, and without two more passes over the feature map, forward and backward, which are
most of what a step of a small network costs.

A depthwise convolution of a map of few cells is a product with one small matrix a channel, which on a CPU takes a
fraction of the time of the library's backward pass.

Parameters, gradients and the state dict stay what they are.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from timm.layers.norm_act import FrozenBatchNormAct2d
from timm.models import FeatureListNet
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

__all__ = ["depthwise_by_matrix", "fold_frozen_norms"]

MAX_CELLS = 36
"""Cells of the largest map whose depthwise convolution is computed by matrices: 36 x 36 numbers a channel."""

_BLOCKS = ("timm.models._efficientnet_blocks", "timm.models.efficientnet", "timm.models.resnet")
"""Where timm defines modules in which a norm that comes after a convolution is computed on its output alone."""


class _Folded:
    """The forward of a convolution and of the frozen norm after it."""

    def __init__(self, convolution: nn.Conv2d, norm: Any) -> None:
        self.convolution, self.norm = convolution, norm

    def __call__(self, x: Tensor) -> Tensor:
        convolution, norm = self.convolution, self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if convolution.bias is not None:
            shift = shift + convolution.bias * scale
        weight = convolution.weight * scale[:, None, None, None]
        padding: Any = convolution.padding
        if isinstance(convolution, Conv2dSame):
            kernel, stride, dilation = (
                list(x) for x in (convolution.kernel_size, convolution.stride, convolution.dilation)
            )
            x, padding = pad_same(x, kernel, stride, dilation), (0, 0)
        if self._is_depthwise and _trains_on_cpu(x) and x.shape[2] * x.shape[3] <= MAX_CELLS:
            return depthwise_by_matrix(x, weight, shift, padding)
        return F.conv2d(x, weight, shift, convolution.stride, padding, convolution.dilation, convolution.groups)

    @property
    def _is_depthwise(self) -> bool:
        """Whether each channel is convolved by itself, to a map of the same size."""
        convolution = self.convolution
        sizes: Any = zip(convolution.kernel_size, convolution.padding, strict=True)
        return (
            convolution.groups == convolution.in_channels == convolution.out_channels
            and convolution.stride == convolution.dilation == (1, 1)
            and all(kernel == 2 * int(padding) + 1 for kernel, padding in sizes)
        )


class _Activation:
    """The part of a norm with activation that remains."""

    def __init__(self, norm: Any) -> None:
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm.act(self.norm.drop(x)) if isinstance(self.norm, FrozenBatchNormAct2d) else x


def fold_frozen_norms(network: nn.Module) -> int:
    """Fold the frozen norms of ``network`` for which that is known to be right; returns how many."""
    count = 0
    for parent in network.modules():
        in_order = type(parent) in (nn.Sequential, FeatureListNet)
        if not in_order and type(parent).__module__ not in _BLOCKS:
            continue
        for convolution, norm in itertools.pairwise(parent.children()):
            frozen = isinstance(norm, (FrozenBatchNormAct2d, FrozenBatchNorm2d))
            if frozen and isinstance(convolution, nn.Conv2d) and convolution.padding_mode == "zeros":
                folded: Any = convolution
                folded.forward = _Folded(convolution, norm)
                norm.forward = _Activation(norm)
                count += 1
    return count


def depthwise_by_matrix(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
    """Each channel of ``x`` (B, C, H, W), convolved by its own ``weight`` (C, 1, h, w) to a map of the same size."""
    B, C, H, W = x.shape
    cells = _cells_under_kernel(tuple(weight.shape[2:]), padding, (H, W)).to(weight.dtype)
    matrices = (weight.flatten(1) @ cells.flatten(1)).view(C, H * W, H * W)
    # Batched products of matrices that are not contiguous are computed one by one.
    found = torch.bmm(x.flatten(2).transpose(0, 1).contiguous(), matrices)
    return (found.transpose(0, 1) + bias[:, None]).reshape(B, C, H, W)


def _trains_on_cpu(x: Tensor) -> bool:
    # What is compiled or exported is left to the compiler.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and torch.is_grad_enabled() and not traced


@functools.cache
def _cells_under_kernel(kernel: tuple[int, ...], padding: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(h * w, H * W, H * W), 1 where the kernel's place [k] lies on cell [i] while it makes cell [o], else 0."""
    places, cells = kernel[0] * kernel[1], size[0] * size[1]
    # Each kernel with one weight of 1 moves a map, and a map with one cell of 1 shows where to.
    with torch.inference_mode(False), torch.device("cpu"):
        units = torch.eye(cells).view(cells, 1, *size)
        moved = F.conv2d(units, torch.eye(places).view(places, 1, *kernel), padding=padding)
        return moved.flatten(2).transpose(0, 1).contiguous()
