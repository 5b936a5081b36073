"""Faster and Mask R-CNN's losses as detectron2 computes them, with fewer waits for the device.

A pass waits once, for how many anchors and regions there are to draw from (rcnn_sampling.py).

Shape suffixes: B images, R anchors of all levels, M regions of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign, cross_entropy
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead, StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from lgd import device_waits
from lgd.detectors.batched import cache_anchors
from lgd.detectors.dense_losses import logs_now, masked_sum
from lgd.detectors.rcnn_masks import forward_mask, mask_head_forward
from lgd.detectors.rcnn_sampling import (
    assign_anchors,
    assign_regions,
    indices_of_true,
    label_and_sample_proposals,
    rpn_forward,
)
from lgd.detectors.retinanet_fast import box_deltas
from lgd.detectors.roi_pooling import pool_regions, pools_without_waits


def use(detector: GeneralizedRCNN) -> None:
    """Replace methods of detectron2's own RPN, ROI heads, box predictor and poolers by those of this module.

    Parts of another class, and losses other than smooth L1 and softmax cross-entropy, stay as they are.
    """
    heads: Any = detector.roi_heads
    if type(heads) is StandardROIHeads:
        _use_in_heads(heads)
    rpn: Any = detector.proposal_generator
    if type(rpn) is RPN and _has_standard_box_loss(rpn) and rpn.anchor_boundary_thresh < 0:
        rpn.assign_anchors = partial(assign_anchors, rpn)
        rpn.losses = partial(rpn_losses, rpn)
        rpn.forward = partial(rpn_forward, rpn, heads if type(heads) is StandardROIHeads else None)
        cache_anchors(rpn.anchor_generator)


def _use_in_heads(heads: Any) -> None:
    heads.assign_regions = partial(assign_regions, heads)
    heads.label_and_sample_proposals = partial(label_and_sample_proposals, heads)
    predictor: Any = heads.box_predictor
    if type(predictor) is FastRCNNOutputLayers and _has_standard_box_loss(predictor) and not predictor.use_sigmoid_ce:
        predictor.losses = partial(box_head_losses, predictor)
    mask_head: Any = getattr(heads, "mask_head", None)
    if mask_head is not None:
        heads._forward_mask = partial(forward_mask, heads)
    if type(mask_head) is MaskRCNNConvUpsampleHead:
        mask_head.forward = partial(mask_head_forward, mask_head)
    poolers: list[Any] = [heads.box_pooler, getattr(heads, "mask_pooler", None)]
    for pooler in poolers:
        if type(pooler) is ROIPooler and len(pooler.level_poolers) > 1:
            pooler.forward = partial(pool, pooler)


def _has_standard_box_loss(part: Any) -> bool:
    return type(part.box2box_transform) is Box2BoxTransform and part.box_reg_loss_type == "smooth_l1"


def rpn_losses(
    rpn: Any,
    anchors: list[Boxes],
    pred_objectness_logits: list[Tensor],
    gt_labels: list[Tensor],
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
) -> dict[str, Tensor]:
    """Cross-entropy of the objectness and smooth L1 over the number of anchors to draw, as detectron2's RPN."""
    labels_BR, boxes_BR4 = torch.stack(gt_labels), torch.stack(gt_boxes)
    positive_BR = labels_BR == 1
    _log({"rpn/num_pos_anchors": positive_BR.sum(), "rpn/num_neg_anchors": (labels_BR == 0).sum()}, over=len(labels_BR))
    anchors_R4 = Boxes.cat(anchors).tensor
    targets_BR4 = box_deltas(anchors_R4, torch.where(positive_BR[..., None], boxes_BR4, anchors_R4), rpn)
    localization = smooth_l1_loss(torch.cat(pred_anchor_deltas, dim=1), targets_BR4, beta=rpn.smooth_l1_beta)
    entropy_BR = F.binary_cross_entropy_with_logits(
        torch.cat(pred_objectness_logits, dim=1), positive_BR.float(), reduction="none"
    )
    losses = {
        "loss_rpn_cls": masked_sum(entropy_BR, labels_BR >= 0),
        "loss_rpn_loc": masked_sum(localization, positive_BR[..., None]),
    }
    normalizer = rpn.batch_size_per_image * len(gt_labels)
    return {name: x / normalizer * rpn.loss_weight.get(name, 1.0) for name, x in losses.items()}


def box_head_losses(
    predictor: Any, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
) -> dict[str, Tensor]:
    """Cross-entropy of the classes and smooth L1 over the number of regions, as detectron2's FastRCNNOutputLayers."""
    scores, deltas = predictions
    classes_M = torch.cat([x.gt_classes for x in proposals])
    foreground_M = (classes_M >= 0) & (classes_M < predictor.num_classes)
    _log_accuracy(scores, classes_M, foreground_M)
    boxes_M4 = torch.cat([x.proposal_boxes.tensor for x in proposals])
    gt_boxes_M4 = torch.cat([(x.gt_boxes if x.has("gt_boxes") else x.proposal_boxes).tensor for x in proposals])
    if deltas.shape[1] != 4:
        index = classes_M.clamp(0, predictor.num_classes - 1)[:, None, None].expand(-1, 1, 4)
        deltas = deltas.view(len(deltas), predictor.num_classes, 4).gather(1, index)[:, 0]
    targets_M4 = box_deltas(boxes_M4, torch.where(foreground_M[:, None], gt_boxes_M4, boxes_M4), predictor)
    regression = smooth_l1_loss(deltas, targets_M4, beta=predictor.smooth_l1_beta)
    losses = {
        "loss_cls": cross_entropy(scores, classes_M, reduction="mean"),
        "loss_box_reg": masked_sum(regression, foreground_M[:, None]) / max(len(classes_M), 1),
    }
    return {name: x * predictor.loss_weight.get(name, 1.0) for name, x in losses.items()}


def _log_accuracy(scores: Tensor, classes_M: Tensor, foreground_M: Tensor) -> None:
    """Log how often the class is right, as detectron2 does; on a GPU every ``LOG_PERIOD`` steps only."""
    if not len(classes_M):
        return
    predicted = scores.argmax(dim=1)
    right, foreground = predicted == classes_M, foreground_M.sum()
    missed = foreground_M & (predicted == scores.shape[1] - 1)
    _log({"fast_rcnn/cls_accuracy": right.sum()}, over=len(classes_M))
    # Without a foreground region detectron2 logs neither.
    _log(
        {"fast_rcnn/fg_cls_accuracy": (right & foreground_M).sum(), "fast_rcnn/false_negative": missed.sum()},
        over=foreground,
    )


def _log(sums: dict[str, Tensor], over: int | Tensor) -> None:
    """Log each sum divided by ``over``; on a GPU every ``LOG_PERIOD`` steps only, for each number is waited for."""
    if not logs_now(next(iter(sums.values()))):
        return
    divisor = float(over)
    for name, value in sums.items():
        if divisor:
            get_event_storage().put_scalar(name, float(value) / divisor)


def pool(pooler: Any, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
    """What the pooler's own forward returns, (M, C, h, w), without a wait for how many regions each level has.

    Poolers of another kind than detectron2's configs have, maps that are not channels_last and GPUs without Triton
    wait once for all levels.
    """
    counts = [len(boxes) for boxes in box_lists]
    if not sum(counts):
        return type(pooler).forward(pooler, x, box_lists)
    boxes_M4 = torch.cat([boxes.tensor for boxes in box_lists])
    images_B = torch.arange(len(counts), dtype=boxes_M4.dtype, device=boxes_M4.device)
    image_M = torch.cat([image.expand(count) for image, count in zip(images_B, counts, strict=True)])
    regions_M5 = torch.cat([image_M[:, None], boxes_M4], dim=1)
    levels_M = assign_boxes_to_levels(
        box_lists, pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )
    if device_waits.reading_waits(levels_M) and _is_standard(pooler) and pools_without_waits(x):
        scales = [x.spatial_scale for x in pooler.level_poolers]
        return pool_regions(x, regions_M5.float(), levels_M, scales, pooler.output_size[0])
    levels = torch.arange(len(pooler.level_poolers), device=levels_M.device)
    here_LM = levels_M == levels[:, None]
    output = x[0].new_zeros(len(regions_M5), x[0].shape[1], *pooler.output_size)
    for level, indices in enumerate(indices_of_true(here_LM, here_LM.sum(1).tolist())):
        output.index_put_((indices,), _pool_level(pooler.level_poolers[level], x[level], regions_M5[indices]))
    return output


def _pool_level(pooler: Any, x: Tensor, regions_M5: Tensor) -> Tensor:
    """What the pooler returns; detectron2's gives boxes the maps' type, and bfloat16 tells pixels near 1000 to 4."""
    if type(pooler) is ROIAlign and x.dtype in (torch.bfloat16, torch.float16):
        pooled: Tensor = pooler(x.float(), regions_M5.float())
        return pooled.to(x.dtype)
    return cast(Tensor, pooler(x, regions_M5))


def _is_standard(pooler: Any) -> bool:
    """Whether every level is pooled by ROIAlignV2 with as many samples as a region's cells ask for."""
    height, width = pooler.output_size
    return height == width and all(
        type(x) is ROIAlign and x.aligned and x.sampling_ratio == 0 for x in pooler.level_poolers
    )
