"""detectron2's ResNets with frozen norms, without passes over the feature maps between their convolutions.

On a GPU what follows a convolution (frozen norm, residual, ReLU) is one kernel instead of three or four operators, each
of which reads and writes the map. detectron2 rounds the norm's scale and shift to the map's type; here they are
float32. On the CPU, and where Triton does not work, the blocks compute as they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn

from lgd.detectors.biased_convolutions import has_hooks
from lgd.kernels.usable import channels_last, usable

CHAINS = {BasicStem: ("conv1",), BasicBlock: ("conv1", "conv2"), BottleneckBlock: ("conv1", "conv2", "conv3")}
"""The convolutions of detectron2's own blocks, in order, a ReLU after each."""


def use(detector: nn.Module) -> None:
    """Replace the forward pass of detectron2's own blocks in which every norm is frozen."""
    for block in detector.modules():
        if type(block) in CHAINS and all(_is_foldable(x) for x in block.children()):
            target: Any = block
            target.forward = partial(_forward, block, _Affines())


def _is_foldable(convolution: Any) -> bool:
    return (
        type(convolution) is Conv2d
        and type(convolution.norm) is FrozenBatchNorm2d
        and convolution.bias is None
        and convolution.activation is None
        and convolution.padding_mode == "zeros"
    )


class _Affines:
    """Scale and shift of each frozen norm, computed again only when one of its buffers has changed.

    A change through ``buffer.data`` is not seen.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[Tensor], list[int], tuple[Tensor, Tensor]]] = {}

    def of(self, name: str, norm: Any) -> tuple[Tensor, Tensor]:
        buffers = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        if any(x.is_inference() for x in buffers):
            # They count no changes.
            return _affine_of(norm)
        versions = [x._version for x in buffers]
        kept = self._kept.get(name)
        if kept is None or versions != kept[1] or any(x is not y for x, y in zip(buffers, kept[0], strict=True)):
            # A tensor of inference mode could not be kept for a later backward pass.
            with torch.inference_mode(False):
                kept = self._kept[name] = (buffers, versions, _affine_of(norm))
        return kept[2]


@torch.no_grad()
def _affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
    return scale, norm.bias.float() - norm.running_mean.float() * scale


def _forward(block: Any, affines: _Affines, x: Tensor) -> Tensor:
    """A stem's or residual block's forward pass."""
    if not usable(x, any_size=True) or not all(_is_as_built(part) for part in block.children()):
        found: Tensor = type(block).forward(block, x)
        return found
    *chain, last = CHAINS[type(block)]
    out = x
    for name in chain:
        out = _convolve(block, affines, name, out, relu=True)
    if isinstance(block, BasicStem):
        return F.max_pool2d(_convolve(block, affines, last, out, relu=True), kernel_size=3, stride=2, padding=1)
    residual = x if block.shortcut is None else _convolve(block, affines, "shortcut", x)
    return _convolve(block, affines, last, out, residual, relu=True)


def _is_as_built(convolution: Any) -> bool:
    """Whether nobody has replaced it or its norm since, or waits for them to be called."""
    if not _is_foldable(convolution) or "forward" in vars(convolution) or "forward" in vars(convolution.norm):
        return False
    return not (has_hooks(convolution) or has_hooks(convolution.norm))


def _convolve(
    block: Any, affines: _Affines, name: str, x: Tensor, residual: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """A convolution, its norm, a residual added to it and ReLU."""
    conv = getattr(block, name)
    out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    if channels_last(out, *([] if residual is None else [residual])) and (
        residual is None or residual.dtype is out.dtype
    ):
        # Lazy: Triton is not installed everywhere.
        from lgd.kernels.affine import affine

        return affine(out, *affines.of(name, conv.norm), residual, relu=relu)
    out = conv.norm(out)
    if residual is not None:
        out += residual
    return F.relu_(out) if relu else out
