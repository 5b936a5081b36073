"""RetinaNet's losses and label assignment, equal to detectron2's in exact arithmetic, without a wait for the device.

detectron2's loop over the images asks the device for counts and places (``nonzero``, boolean indices, ``.item()``)
several times an image, and its focal loss writes a dozen tensors of the size of all scores, one of them of 64-bit
integers. On one H100 with 16 images of side 800 those scores are 257 million.

Shape suffixes: B images, N object slots of an image, R anchors of all levels, r of one level, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

MAX_IOUS = 32 * 2**20
"""IoUs that are computed at once: as many images as have no more together."""

CACHED_GRIDS = 32
"""Sizes of feature pyramids whose anchors are kept: 3 MiB each at the paper's size."""

LOG_PERIOD = 20
"""Steps between two logged numbers of positives on a GPU, each of which is waited for."""


def use_fast_losses(detector: nn.Module) -> nn.Module:
    """Replace two methods of detectron2's own RetinaNet by those of this module; returns ``detector``.

    Any other detector, and a subclass, stays as it is.

    The class, the parameters and their names stay. Box losses other than smooth L1 on the standard coding stay, too.
    """
    if type(detector) is not RetinaNet:
        return detector
    target = cast(Any, detector)
    if (
        type(target.box2box_transform) is Box2BoxTransform
        and target.box_reg_loss_type == "smooth_l1"
        # fvcore's sign for no weighting at all, and what an image without objects is labelled with.
        and target.focal_loss_alpha >= 0
        and target.anchor_matcher.labels[0] == 0
    ):
        target.label_anchors = partial(label_anchors, detector)
        target.losses = partial(losses, detector)
        if type(target.anchor_generator) is DefaultAnchorGenerator:
            target.anchor_generator._grid_anchors = _CachedGridAnchors(target.anchor_generator)
    return detector


class _CachedGridAnchors:
    """An anchor generator's anchors of the last ``CACHED_GRIDS`` sizes of feature pyramids.

    detectron2 makes them anew in each pass, on the CPU first, and waits for the copies.
    """

    def __init__(self, generator: DefaultAnchorGenerator) -> None:
        self._generator = generator
        self._cache: OrderedDict[Any, list[Tensor]] = OrderedDict()

    def __call__(self, grid_sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        cell_anchors = next(self._generator.cell_anchors.buffers())
        key = (tuple(tuple(x) for x in grid_sizes), cell_anchors.device, cell_anchors.dtype)
        if key not in self._cache:
            self._cache[key] = DefaultAnchorGenerator._grid_anchors(self._generator, grid_sizes)
            if len(self._cache) > CACHED_GRIDS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return list(self._cache[key])


@torch.no_grad()
def label_anchors(
    detector: Any, anchors: list[Boxes], gt_instances: list[Instances]
) -> tuple[list[Tensor], list[Tensor]]:
    """Labels (R,) of every image, K for background and -1 for what is ignored, and the matched boxes (R, 4)."""
    anchors_R4 = Boxes.cat(anchors).tensor
    boxes_BN4 = pad_sequence([x.gt_boxes.tensor for x in gt_instances], batch_first=True)
    classes_BN = pad_sequence([x.gt_classes for x in gt_instances], batch_first=True)
    valid_BN = pad_sequence([torch.ones_like(x.gt_classes, dtype=torch.bool) for x in gt_instances], batch_first=True)
    if boxes_BN4.shape[1] == 0:
        boxes_BN4, classes_BN, valid_BN = (
            x.new_zeros(len(x), 1, *x.shape[2:]) for x in (boxes_BN4, classes_BN, valid_BN)
        )
    images_at_once = max(1, MAX_IOUS // (boxes_BN4.shape[1] * len(anchors_R4)))
    gt_labels: list[Tensor] = []
    matched_boxes: list[Tensor] = []
    for boxes, classes, valid in zip(
        boxes_BN4.split(images_at_once), classes_BN.split(images_at_once), valid_BN.split(images_at_once), strict=True
    ):
        matched_idxs, match_labels = match_anchors(
            detector.anchor_matcher, batched_iou(boxes, anchors_R4, valid), valid
        )
        labels = classes.gather(1, matched_idxs)
        labels = torch.where(match_labels == 0, detector.num_classes, torch.where(match_labels == -1, -1, labels))
        gt_labels += labels.unbind()
        matched_boxes += boxes.gather(1, matched_idxs[..., None].expand(-1, -1, 4)).unbind()
    return gt_labels, matched_boxes


def batched_iou(boxes_BN4: Tensor, anchors_R4: Tensor, valid_BN: Tensor) -> Tensor:
    """IoU (B, N, R) of objects and anchors, by the arithmetic of detectron2's pairwise_iou; -1 for padding."""
    x1, y1, x2, y2 = boxes_BN4[:, :, None].unbind(-1)
    left, top, right, bottom = anchors_R4.unbind(-1)
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)
    height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0)
    intersection = width.mul_(height)
    areas = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)
    iou = torch.where(intersection > 0, intersection / areas.sub_(intersection), 0.0)
    return iou.masked_fill_(~valid_BN[..., None], -1)


def match_anchors(matcher: Any, iou_BNR: Tensor, valid_BN: Tensor) -> tuple[Tensor, Tensor]:
    """What detectron2's Matcher returns, of a batch: matched indices (B, R) of objects and match labels (B, R).

    The labels are 1 for positive, 0 for background, -1 for ignored.
    """
    best_iou, matched_idxs = iou_BNR.max(dim=1)
    match_labels = torch.full_like(matched_idxs, matcher.labels[0])
    for label, low in zip(matcher.labels[1:], matcher.thresholds[1:], strict=False):
        match_labels = torch.where(best_iou >= low, label, match_labels)
    if matcher.allow_low_quality_matches:
        highest = iou_BNR.amax(dim=2, keepdim=True).masked_fill(~valid_BN[..., None], 2)
        match_labels = torch.where((iou_BNR == highest).any(dim=1), 1, match_labels)
    return matched_idxs, match_labels


def losses(
    detector: Any,
    anchors: list[Boxes],
    pred_logits: list[Tensor],
    gt_labels: list[Tensor],
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
) -> dict[str, Tensor]:
    """Focal loss and smooth L1, over the running mean of the number of positives, as detectron2's RetinaNet."""
    labels_BR, boxes_BR4 = torch.stack(gt_labels), torch.stack(gt_boxes)
    positive_BR = (labels_BR >= 0) & (labels_BR != detector.num_classes)
    positives = positive_BR.sum()
    storage = get_event_storage()
    if not positives.is_cuda or (storage.iter + 1) % LOG_PERIOD == 0:
        storage.put_scalar("num_pos_anchors", positives / len(labels_BR))
    normalizer = detector._ema_update("loss_normalizer", positives.clamp(min=1).double(), 100).float()
    classification: Any = 0.0
    start = 0
    for logits_BrK in pred_logits:
        labels_Br = labels_BR[:, start : start + logits_BrK.shape[1]]
        classification = classification + FocalLoss.apply(
            logits_BrK, labels_Br, detector.focal_loss_alpha, detector.focal_loss_gamma
        )
        start += logits_BrK.shape[1]
    anchors_R4 = Boxes.cat(anchors).tensor
    gt_deltas_BR4 = box_deltas(anchors_R4, torch.where(positive_BR[..., None], boxes_BR4, anchors_R4), detector)
    each = smooth_l1_loss(torch.cat(pred_anchor_deltas, dim=1), gt_deltas_BR4, beta=detector.smooth_l1_beta)
    regression = torch.where(positive_BR[..., None], each, 0.0).sum()
    return {"loss_cls": classification / normalizer, "loss_box_reg": regression / normalizer}


def box_deltas(anchors: Tensor, boxes: Tensor, detector: Any) -> Tensor:
    """Box2BoxTransform.get_deltas (..., 4), without its check of the boxes' areas, which would wait for the device."""
    sizes, box_sizes = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * box_sizes) - (anchors[..., :2] + 0.5 * sizes)
    parts = torch.cat([shift / sizes, (box_sizes / sizes).log()], dim=-1)
    # Numbers of the host: a tensor of them would be a copy to wait for.
    return torch.stack([x * w for x, w in zip(parts.unbind(-1), detector.box2box_transform.weights, strict=True)], -1)


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
