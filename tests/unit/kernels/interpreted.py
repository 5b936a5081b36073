"""What the kernels compute beside torch's operators, in Triton's interpreter, which needs no GPU.

Run as a script with TRITON_INTERPRET=1, which Triton reads when it is imported: prints the largest relative differences
as JSON, by name. On a GPU without that variable it compares the compiled kernels.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lgd.detectors.dense_losses import FocalLoss
from lgd.kernels.affine import affine
from lgd.kernels.focal_loss import focal_loss
from lgd.kernels.norms import normalize, normalized_square_distance

EPS = 1e-5

SIZES = ((2, 24, 7, 9), (1, 256, 9, 8), (3, 5, 1, 1), (2, 16, 40, 33))
"""Maps of fewer and of more cells and channels than a program holds, and of one cell."""


def main(device: str) -> None:
    torch.manual_seed(0)
    found: dict[str, float] = {}
    for dtype, size in itertools.product((torch.float32, torch.bfloat16), SIZES):
        name = f"{str(dtype).removeprefix('torch.')} {size}"
        for case, (ours, expected, inputs) in _cases(size, dtype, device).items():
            found[f"{case} {name}"] = _difference(ours, expected, inputs)
    print(json.dumps(found))


def _cases(size: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """By name: the kernel, torch's operators in float64, and the inputs, of which those that require it get a gradient."""
    x, y = (_map(size, dtype, device) for _ in range(2))
    still = _map(size, dtype, device).detach()
    scale, shift = (torch.randn(size[1], device=device) for _ in range(2))
    logits = (torch.randn(size[0], 50, size[1], device=device) * 6).to(dtype).requires_grad_()
    labels = torch.randint(-1, size[1] + 1, (size[0], 50), device=device)
    named: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "affine": (
            lambda a: affine(a, scale, shift),
            lambda a: _scaled(a, scale, shift),
            (x,),
        ),
        "affine, ReLU": (
            lambda a: affine(a, scale, shift, relu=True),
            lambda a: _scaled(a, scale, shift).relu(),
            (x,),
        ),
        "affine, residual, ReLU": (
            lambda a, b: affine(a, scale, shift, b, relu=True),
            lambda a, b: (_scaled(a, scale, shift) + b).relu(),
            (x, y),
        ),
        "affine, still residual": (
            lambda a, b: affine(a, scale, shift, b),
            lambda a, b: _scaled(a, scale, shift) + b,
            (x, still),
        ),
        "group norm": (lambda a: normalize(a, EPS, group=True), lambda a: F.group_norm(a, 1, eps=EPS), (x,)),
        "group norm, ReLU": (
            lambda a: normalize(a, EPS, group=True, relu=True),
            lambda a: F.group_norm(a, 1, eps=EPS).relu(),
            (x,),
        ),
        "instance norm": (lambda a: normalize(a, EPS, group=False), _instance_norm, (x,)),
        "distance": (
            lambda a, b: normalized_square_distance(a, b, EPS),
            lambda a, b: (_instance_norm(a) - _instance_norm(b)).square().sum(),
            (x, still),
        ),
        "focal loss": (
            lambda a: focal_loss(a, labels, 0.25, 2.0),
            lambda a: FocalLoss.apply(a, labels, 0.25, 2.0),
            (logits,),
        ),
        "focal loss, gamma 1.5": (
            lambda a: focal_loss(a, labels, 0.25, 1.5),
            lambda a: FocalLoss.apply(a, labels, 0.25, 1.5),
            (logits,),
        ),
    }
    return named


def _map(size: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    # A mean that is large beside the deviation.
    values = (torch.randn(size, device=device) + 3).to(dtype)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale[:, None, None] + shift[:, None, None]


def _instance_norm(x: Tensor) -> Tensor:
    centred = x - x.mean((2, 3), keepdim=True)
    return centred * (centred.square().mean((2, 3), keepdim=True) + EPS).rsqrt()


def _difference(ours: Callable[..., Tensor], expected: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> float:
    """The largest relative difference of results and gradients, by their norms."""
    wide = tuple(x.detach().double().requires_grad_(x.requires_grad) for x in inputs)
    upstream: Tensor | None = None
    pairs: list[tuple[Tensor, Tensor]] = []
    results = expected(*wide), ours(*inputs)
    upstream = torch.randn_like(results[0])
    pairs.append(results)
    gradients = []
    for result, given in zip(results, (wide, inputs), strict=True):
        trained = [x for x in given if x.requires_grad]
        gradients.append(torch.autograd.grad(result, trained, upstream.to(result.dtype)))
    pairs += zip(*gradients, strict=True)
    # A norm of one cell has no gradient: then the difference itself counts.
    return max(float((b.double() - a).norm() / (a.norm() if a.norm() > 1e-6 else 1.0)) for a, b in pairs)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
