"""The sigmoid focal loss (Lin et al., ICCV 2017, equation 5) in one pass over the scores, and its gradient in another.

In torch's operators it takes a dozen passes over tensors of the size of all scores: on one H100 with 16 images of side
800 RetinaNet's scores are 257 million.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2048
"""Scores that one program computes."""


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum over all scores (scalar, float32), computed in float32.

    logits: (B, r, K), contiguous; labels: (B, r) long, K for background, -1 for rows without a loss.
    """
    found: Tensor = _FocalLoss.apply(logits, labels.contiguous(), alpha, gamma)
    return found


class _FocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        programs = triton.cdiv(logits.numel(), BLOCK)
        sums = torch.empty(programs, dtype=torch.float32, device=logits.device)
        _loss_kernel[(programs,)](
            logits, labels, sums, logits.numel(), alpha, gamma, K=logits.shape[-1], BLOCK=BLOCK, SQUARE=gamma == 2
        )
        ctx.save_for_backward(logits, labels)
        ctx.alpha, ctx.gamma = alpha, gamma
        return sums.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        _gradient_kernel[(triton.cdiv(logits.numel(), BLOCK),)](
            *(logits, labels, grads[0], gradient, logits.numel(), ctx.alpha, ctx.gamma),
            K=logits.shape[-1], BLOCK=BLOCK, SQUARE=ctx.gamma == 2,
        )  # fmt: skip
        return gradient, None, None, None


@triton.jit
def _terms(logits, labels, numel, alpha, gamma, K: tl.constexpr, BLOCK: tl.constexpr, SQUARE: tl.constexpr):
    """Of each score of a program: its offset, its sign, the weight (zero where nothing counts), the probability of the
    wrong answer and its penalty, -log of the right one's."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    # Divisions of 64-bit integers are slow: one a program.
    row, column = first // K, (first % K).to(tl.int32)
    places = column + tl.arange(0, BLOCK)
    offsets = first + tl.arange(0, BLOCK)
    inside = offsets < numel
    label = tl.load(labels + row + places // K, mask=inside, other=-1).to(tl.int32)
    present = label == places % K
    x = tl.load(logits + offsets, mask=inside, other=0.0).to(tl.float32)
    sign = tl.where(present, -1.0, 1.0)
    z = x * sign
    e = tl.exp(-tl.abs(z))
    # log(1 + e), by its series where the sum would lose what e has.
    log1p = tl.where(e < 0.03, e * (1 - e * (0.5 - e * (1.0 / 3 - e * 0.25))), tl.log(1 + e))
    penalty = tl.maximum(z, 0.0) + log1p
    wrong = tl.where(z >= 0, 1 / (1 + e), e / (1 + e))
    if SQUARE:
        modulation = wrong * wrong
    else:
        modulation = tl.exp(-gamma * (tl.maximum(-z, 0.0) + log1p))
    weight = tl.where(label >= 0, tl.where(present, alpha, 1 - alpha) * modulation, 0.0)
    return offsets, inside, sign, weight, wrong, penalty


@triton.jit
def _loss_kernel(logits, labels, sums, numel, alpha, gamma, K: tl.constexpr, BLOCK: tl.constexpr, SQUARE: tl.constexpr):
    _, _, _, weight, _, penalty = _terms(logits, labels, numel, alpha, gamma, K, BLOCK, SQUARE)
    tl.store(sums + tl.program_id(0), tl.sum(weight * penalty, axis=0))


@triton.jit
def _gradient_kernel(
    logits, labels, upstream, gradient, numel, alpha, gamma,
    K: tl.constexpr, BLOCK: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    offsets, inside, sign, weight, wrong, penalty = _terms(logits, labels, numel, alpha, gamma, K, BLOCK, SQUARE)
    found = sign * weight * (gamma * (1 - wrong) * penalty + wrong) * tl.load(upstream)
    tl.store(gradient + offsets, found.to(gradient.dtype.element_ty), mask=inside)
