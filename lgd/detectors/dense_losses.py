"""What the dense detectors' losses share: sums over a batch without a wait for the device.

detectron2's focal loss writes a dozen tensors of the size of all scores, one of them of 64-bit integers; on one H100
with 16 images of side 800 RetinaNet's scores are 257 million. Its box losses pick out the positives, whose number it
has to wait for. Here what is no positive counts as zero instead, which is the same in exact arithmetic.

Shape suffixes: B images, R anchors or locations of all levels, r of one level, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from lgd import device_waits
from lgd.kernels.usable import usable

LOG_PERIOD = 20
"""Steps between two logged numbers of positives on a GPU, each of which is waited for."""


def log_positives(positives: Tensor, images: int) -> None:
    """Log their number an image, as detectron2 does; on a GPU every ``LOG_PERIOD`` steps only."""
    if logs_now(positives):
        get_event_storage().put_scalar("num_pos_anchors", positives / images)


def logs_now(x: Tensor) -> bool:
    """Whether numbers of ``x``'s device are logged in this step: on a GPU every ``LOG_PERIOD`` steps only."""
    return not device_waits.reading_waits(x) or (get_event_storage().iter + 1) % LOG_PERIOD == 0


def classification_loss(logits: Sequence[Tensor], labels_BR: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum of the focal loss over levels, each (B, r, K); labels as :class:`FocalLoss` takes them."""
    total: Any = 0.0
    for logits_BrK, labels_Br in zip(logits, labels_BR.split([x.shape[1] for x in logits], dim=1), strict=True):
        total = total + _focal_loss(logits_BrK, labels_Br, alpha, gamma)
    return total


def _focal_loss(logits_BrK: Tensor, labels_Br: Tensor, alpha: float, gamma: float) -> Tensor:
    if logits_BrK.is_contiguous() and usable(logits_BrK):
        # Lazy: Triton is not installed everywhere.
        from lgd.kernels.focal_loss import focal_loss

        return focal_loss(logits_BrK, labels_Br, alpha, gamma)
    found: Tensor = FocalLoss.apply(logits_BrK, labels_Br, alpha, gamma)
    return found


def decode_positive(transform: Any, deltas_BR4: Tensor, anchors_R4: Tensor, positive_BR: Tensor) -> Tensor:
    """Boxes (B, R, 4) that the network predicts, pixels; where nothing is positive a box without gradient."""
    # A transform takes the boxes to the deltas' type: bfloat16 tells coordinates near 1000 pixels to 4 pixels.
    deltas = torch.where(positive_BR[..., None], deltas_BR4, 0).float()
    anchors = anchors_R4.expand_as(deltas)
    decoded: Tensor = transform.apply_deltas(deltas.flatten(0, 1), anchors.reshape(-1, 4))
    return decoded.view_as(deltas)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., CVPR 2019) of boxes (..., 4) and targets (..., 4): (...).

    fvcore's arithmetic. It asserts that no box is inside out, and indexes with booleans: two waits and more.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    left, top, right, bottom = targets.unbind(-1)
    width = torch.minimum(x2, right) - torch.maximum(x1, left)
    height = torch.minimum(y2, bottom) - torch.maximum(y1, top)
    intersection = torch.where((width > 0) & (height > 0), width * height, 0)
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - intersection
    hull_width = torch.maximum(x2, right) - torch.minimum(x1, left)
    hull_height = torch.maximum(y2, bottom) - torch.minimum(y1, top)
    hull = hull_width * hull_height
    return 1 - intersection / (union + EPS) + (hull - union) / (hull + EPS)


EPS = 1e-7
"""fvcore's guard against a division by zero, square pixels."""


def masked_sum(values_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """Sum of the values where the mask is true; whatever stands elsewhere gets no gradient."""
    return torch.where(mask_BR, values_BR, 0).sum()


class FocalLoss(torch.autograd.Function):
    """Sum of the sigmoid focal loss (Lin et al., ICCV 2017, equation 5); its gradient is computed in the forward pass.

    logits (B, r, K) in any floating type; labels (B, r) long: K for background, -1 for rows without a loss. Every
    class is counted as absent first; the present ones, one a row, are then corrected. The sum is in float32, and so is
    the gradient that is kept, but for bfloat16 logits, whose own it is.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        classes = logits.shape[-1]
        with torch.autocast(logits.device.type, enabled=False):
            x, counted = logits.float(), (labels >= 0)[..., None]
            present = counted & (labels != classes)[..., None]
            label = labels.clamp(0, classes - 1)[..., None]
            score, penalty = x.sigmoid(), nn.functional.softplus(x)
            weight = score.square() if gamma == 2 else score.pow(gamma)
            total = ((weight * penalty).sum(-1, keepdim=True) * counted).sum() * (1 - alpha)
            s, p, w = (y.gather(-1, label) for y in (score, penalty, weight))
            # softplus(-x) = softplus(x) - x
            log_loss, modulation = p - x.gather(-1, label), (1 - s).pow(gamma)
            total = total + ((alpha * modulation * log_loss - (1 - alpha) * w * p) * present).sum()
            if ctx.needs_input_grad[0]:
                gradient = penalty.mul_(1 - score).mul_(gamma).add_(score).mul_(weight).mul_((1 - alpha) * counted)
                of_present = -alpha * modulation * (gamma * s * log_loss + 1 - s)
                gradient.scatter_(-1, label, torch.where(present, of_present, gradient.gather(-1, label)))
                ctx.save_for_backward(gradient.to(logits.dtype if logits.dtype is torch.bfloat16 else torch.float32))
                ctx.dtype = logits.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0]).to(ctx.dtype), None, None, None
