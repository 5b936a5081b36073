"""What the kernels compute beside torch's operators, in Triton's interpreter, which needs no GPU.

Run as a script with TRITON_INTERPRET=1, which Triton reads when it is imported: prints the largest relative differences
as JSON, by name. On a GPU without that variable it compares the compiled kernels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align

from lgd.detectors.dense_losses import FocalLoss
from lgd.kernels.affine import affine
from lgd.kernels.bias import add_bias_
from lgd.kernels.focal_loss import focal_loss
from lgd.kernels.greedy_nms import greedy_nms
from lgd.kernels.norms import normalize, normalized_square_distance
from lgd.kernels.roi_align import pool, pool_backward

Case = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]

EPS = 1e-5

SIZES = ((2, 24, 7, 9), (1, 256, 9, 8), (3, 5, 1, 1), (2, 16, 40, 33))
"""Maps of fewer and of more cells and channels than a program holds, and of one cell."""

ON_A_GPU = ((2, 256, 40, 33),)
"""Fewer: there every size is compiled."""


def main(device: str) -> None:
    torch.manual_seed(0)
    found: dict[str, float] = {}
    sizes = ON_A_GPU if device == "cuda" else SIZES
    for dtype, size in [*((torch.float32, x) for x in sizes), *((torch.bfloat16, x) for x in sizes[:2])]:
        name = f"{str(dtype).removeprefix('torch.')} {size}"
        for case, (ours, expected, inputs) in _cases(size, dtype, device).items():
            found[f"{case} {name}"] = _difference(ours, expected, inputs)
    found |= {"pooled regions": _pooling(device), "greedy nms": _nms(device)}
    print(json.dumps(found))


def _pooling(device: str) -> float:
    """RoIAlign of regions of three levels, some beyond the image and one without an area, against torchvision's."""
    scales, size = (1 / 4, 1 / 8, 1 / 16), 3
    maps = [torch.randn(2, 5, s, s + 3, device=device) for s in (16, 8, 4)]
    maps = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in maps]
    corners, sides = torch.rand(12, 2, device=device) * 60 - 6, torch.rand(12, 2, device=device) * 40
    sides[0] = 0
    images = torch.randint(0, 2, (12, 1), device=device)
    regions = torch.cat([images.float(), corners, corners + sides], dim=1)
    levels = torch.randint(0, 3, (12,), device=device)
    upstream = torch.randn(12, size, size, 5, device=device)
    pooled = pool(maps, regions, levels, scales, size)
    pairs = [
        (roi_align(x, regions[levels == i], size, scales[i], 0, True), pooled[levels == i].permute(0, 3, 1, 2))
        for i, x in enumerate(maps)
    ]
    ours = pool_backward(upstream, [x.shape for x in maps], regions, levels, scales)
    for i, x in enumerate(maps):
        (expected,) = torch.autograd.grad(pairs[i][0], x, upstream[levels == i].permute(0, 3, 1, 2))
        pairs.append((expected, ours[i]))
    return max(float((b - a).detach().norm() / a.detach().norm()) for a, b in pairs)


def _nms(device: str) -> float:
    """The share of boxes of three groups, some of them padding, that torchvision's NMS does not choose as ours does."""
    corners, sides = torch.rand(3, 70, 2, device=device) * 60, torch.rand(3, 70, 2, device=device) * 30 + 5
    boxes, valid = torch.cat([corners, corners + sides], dim=-1), torch.rand(3, 70, device=device) > 0.1
    expected = torch.zeros_like(valid)
    for group, places in enumerate(x.nonzero()[:, 0] for x in valid):
        expected[group, places[nms(boxes[group, places], -places.float(), 0.5)]] = True
    assert 0 < expected.sum() < valid.sum()
    return float((greedy_nms(boxes, valid, 0.5) != expected).float().mean())


def _cases(size: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Case]:
    """By name: the kernel, torch's operators in float64, and the inputs; those that require it get a gradient."""
    x, y = (_map(size, dtype, device) for _ in range(2))
    scale, shift = (torch.randn(size[1], device=device) for _ in range(2))
    bias = torch.randn(size[1], device=device).requires_grad_()
    still = y.detach()
    return {
        "affine": (lambda a: affine(a, scale, shift), lambda a: _scaled(a, scale, shift), (x,)),
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
        "bias": (lambda a, b: add_bias_(a * 1, b), lambda a, b: a + b[:, None, None], (x, bias)),
        "bias, ReLU": (
            lambda a, b: add_bias_(a * 1, b, relu=True),
            lambda a, b: (a + b[:, None, None]).relu(),
            (x, bias),
        ),
        "still bias, ReLU": (
            lambda a: add_bias_(a * 1, shift, relu=True),
            lambda a: (a + shift[:, None, None]).relu(),
            (x,),
        ),
        **_norms(x, still),
        **_focal_losses(size, dtype, device),
    }


def _norms(x: Tensor, still: Tensor) -> dict[str, Case]:
    return {
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
    }


def _focal_losses(size: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Case]:
    logits = (torch.randn(size[0], 50, size[1], device=device) * 6).to(dtype).requires_grad_()
    labels = torch.randint(-1, size[1] + 1, (size[0], 50), device=device)
    return {
        f"focal loss, gamma {gamma}": (
            partial(focal_loss, labels=labels, alpha=0.25, gamma=gamma),
            partial(_expected_focal_loss, labels=labels, gamma=gamma),
            (logits,),
        )
        for gamma in (2.0, 1.5)
    }


def _expected_focal_loss(logits: Tensor, *, labels: Tensor, gamma: float) -> Tensor:
    found: Tensor = FocalLoss.apply(logits, labels, 0.25, gamma)
    return found


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
    results = expected(*wide), ours(*inputs)
    upstream = torch.randn_like(results[0])
    gradients = []
    for result, given in zip(results, (wide, inputs), strict=True):
        trained = [x for x in given if x.requires_grad]
        gradients.append(torch.autograd.grad(result, trained, upstream.to(result.dtype)))
    pairs = [(x.detach(), y.detach()) for x, y in (results, *zip(*gradients, strict=True))]
    # A norm of one cell has no gradient: then the difference itself counts.
    return max(float((b.double() - a).norm() / (a.norm() if a.norm() > 1e-6 else 1.0)) for a, b in pairs)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
