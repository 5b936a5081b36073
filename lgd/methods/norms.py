"""Normalisations without learnt parameters, with float32 statistics whatever the precision around them.

Given half precision, torch's own kernels would keep mean and deviation in it, which shifts a whole map by up to half a
percent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last dimension of (..., C)."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype)


def group_norm(x: Tensor) -> Tensor:
    """GroupNorm with one group over (C, h, w) of each image of (B, C, h, w)."""
    return F.group_norm(x.float(), 1, eps=EPS).to(x.dtype)


def instance_norm(x: Tensor) -> Tensor:
    """InstanceNorm over (h, w) of each channel of (B, C, h, w), in float32.

    A 1 x 1 map has nothing to normalise and becomes zero, as the formula says; torch's own refuses it.
    """
    if x.shape[-2:].numel() == 1:
        return x.float() * 0.0
    return F.instance_norm(x.float(), eps=EPS)


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which operations on the device of ``x`` keep the types of their inputs."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
