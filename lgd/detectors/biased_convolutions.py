"""Convolutions with a bias, and the ReLU after them, with fewer passes over the feature maps.

On a GPU torch adds the bias to a convolution's result in a pass of its own, and ReLU is another one. Here both are one
(lgd/kernels/bias.py). On the CPU, and where Triton does not work, the modules compute as they are.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import detectron2.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from lgd.kernels.usable import channels_last, usable


def use(model: nn.Module) -> nn.Module:
    """Replace the forward pass of plain convolutions with a bias and of sequences of them; returns ``model``."""
    for module in model.modules():
        target: Any = module
        if "forward" in vars(module):
            continue
        if _is_plain(module):
            target.forward = partial(_convolution, module)
        elif type(module) is nn.Sequential and any(_is_plain(x) for x in module):
            target.forward = partial(_sequence, module)
    return model


def _is_plain(module: Any) -> bool:
    """Whether it is a convolution with a bias, and at most a ReLU after it."""
    if type(module) is detectron2.layers.Conv2d:
        if module.norm is not None or not (module.activation is None or _is_relu(module.activation)):
            return False
    elif type(module) is not nn.Conv2d:
        return False
    return module.bias is not None and module.padding_mode == "zeros"


def _is_relu(activation: Any) -> bool:
    return activation is F.relu or type(activation) is nn.ReLU


def _convolution(conv: Any, *arguments: Any, **named: Any) -> Any:
    x = arguments[0] if len(arguments) == 1 and not named else None
    activation = getattr(conv, "activation", None)
    if not isinstance(x, Tensor) or not _is_large(conv, x) or not _is_plain(conv) or _is_hooked(activation):
        return type(conv).forward(conv, *arguments, **named)
    return _convolve(conv, x, relu=activation is not None)


def _sequence(modules: nn.Sequential, *arguments: Any, **named: Any) -> Any:
    x = arguments[0] if len(arguments) == 1 and not named else None
    if not isinstance(x, Tensor) or not usable(x, any_size=True):
        return nn.Sequential.forward(modules, *arguments, **named)
    rest = list(modules)
    while rest:
        module = rest.pop(0)
        both = bool(rest) and _is_ours(module) and type(rest[0]) is nn.ReLU
        if both and not (has_hooks(module) or has_hooks(rest[0])) and _is_large(module, x):
            x = _convolve(module, x, relu=True)
            rest.pop(0)
        else:
            x = module(x)
    return x


def _is_ours(module: Any) -> bool:
    """Whether it is a plain convolution whose forward pass is that of this module."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _convolution and _is_plain(module)


def _is_large(conv: Any, x: Tensor) -> bool:
    """Whether the kernels can be used and what ``conv`` makes of ``x``, about, is large enough for them."""
    elements = x.numel() // conv.in_channels // math.prod(conv.stride) * conv.out_channels
    is_map = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return is_map and usable(x, elements=elements)


def _is_hooked(activation: Any) -> bool:
    return isinstance(activation, nn.Module) and has_hooks(activation)


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook, its own or one of all modules, waits for the module to be called."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own) or _has_any_global_hook()


def _convolve(conv: Any, x: Tensor, *, relu: bool) -> Tensor:
    out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    if channels_last(out):
        # Lazy: Triton is not installed everywhere.
        from lgd.kernels.bias import add_bias_

        return add_bias_(out, conv.bias, relu=relu)
    out = out + conv.bias.to(out.dtype)[:, None, None]
    return F.relu_(out) if relu else out
