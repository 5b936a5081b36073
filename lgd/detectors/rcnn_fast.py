"""Faster and Mask R-CNN's assignment, sampling and losses as detectron2 computes them, with fewer waits for the device.

The same samples are drawn from the same random numbers: their number depends on how many positives there are, which is
waited for once a batch, not several times an image. What stays is the NMS of each image, whose result has a size that
nobody knows before, and Mask R-CNN's masks, which are cropped on the host.

Shape suffixes: B images, N object slots of an image, P proposals of an image, R anchors of all levels, M regions of the
batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms, cross_entropy
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lgd import device_waits
from lgd.detectors.batched import batched_iou, cache_anchors, in_parts, match_anchors, pad_objects
from lgd.detectors.dense_losses import LOG_PERIOD, masked_sum
from lgd.detectors.retinanet_fast import box_deltas


def use(detector: GeneralizedRCNN) -> None:
    """Replace methods of detectron2's own RPN, ROI heads, box predictor and poolers by those of this module.

    Parts of another class, and losses other than smooth L1 and softmax cross-entropy, stay as they are.
    """
    rpn: Any = detector.proposal_generator
    if type(rpn) is RPN and _has_standard_box_loss(rpn) and rpn.anchor_boundary_thresh < 0:
        rpn.label_and_sample_anchors = partial(label_and_sample_anchors, rpn)
        rpn.losses = partial(rpn_losses, rpn)
        rpn.predict_proposals = partial(predict_proposals, rpn)
        cache_anchors(rpn.anchor_generator)
    heads: Any = detector.roi_heads
    if type(heads) is not StandardROIHeads:
        return
    heads.label_and_sample_proposals = partial(label_and_sample_proposals, heads)
    predictor: Any = heads.box_predictor
    if type(predictor) is FastRCNNOutputLayers and _has_standard_box_loss(predictor) and not predictor.use_sigmoid_ce:
        predictor.losses = partial(box_head_losses, predictor)
    poolers: list[Any] = [heads.box_pooler, getattr(heads, "mask_pooler", None)]
    for pooler in poolers:
        if type(pooler) is ROIPooler and len(pooler.level_poolers) > 1:
            pooler.forward = partial(pool, pooler)


def _has_standard_box_loss(part: Any) -> bool:
    return type(part.box2box_transform) is Box2BoxTransform and part.box_reg_loss_type == "smooth_l1"


def draw(labels_BR: Tensor, part: Any, background: int) -> list[tuple[Tensor, Tensor]]:
    """Indices of the positives and of the negatives that are drawn of each image: detectron2's ``subsample_labels``.

    labels: -1 for what is ignored. part: has ``batch_size_per_image`` and ``positive_fraction``.
    """
    positive_BR, negative_BR = (labels_BR != -1) & (labels_BR != background), labels_BR == background
    # The one wait of the batch.
    counts = torch.stack([positive_BR.sum(1), negative_BR.sum(1)]).tolist()
    indices = [_indices(mask, count) for mask, count in zip((positive_BR, negative_BR), counts, strict=True)]
    drawn = []
    for positive, negative in zip(*indices, strict=True):
        wanted = min(len(positive), int(part.batch_size_per_image * part.positive_fraction))
        rest = min(len(negative), part.batch_size_per_image - wanted)
        drawn.append(
            (
                positive[torch.randperm(len(positive), device=positive.device)[:wanted]],
                negative[torch.randperm(len(negative), device=negative.device)[:rest]],
            )
        )
    return drawn


def _indices(mask_BR: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Where each row of the mask is true, ascending; ``counts`` says how often that is."""
    return torch.nonzero_static(mask_BR, size=sum(counts))[:, 1].split(list(counts))


@torch.no_grad()
def label_and_sample_anchors(
    rpn: Any, anchors: list[Boxes], gt_instances: list[Instances]
) -> tuple[list[Tensor], list[Tensor]]:
    """Labels (R,) of every image, 1, 0 or -1 (not drawn), and the matched boxes (R, 4)."""
    anchors_R4 = Boxes.cat(anchors).tensor
    gt_labels: list[Tensor] = []
    matched_boxes: list[Tensor] = []
    for objects in in_parts(pad_objects(gt_instances), len(anchors_R4)):
        iou_BNR = batched_iou(objects.boxes, anchors_R4, objects.valid)
        matched_BR, labels_BR = match_anchors(rpn.anchor_matcher, iou_BNR, objects.valid)
        matched_boxes += objects.boxes.gather(1, matched_BR[..., None].expand(-1, -1, 4)).unbind()
        for positive, negative in draw(labels_BR, rpn, 0):
            labels = torch.full_like(labels_BR[0], -1)
            gt_labels.append(labels.scatter_(0, positive, 1).scatter_(0, negative, 0))
    return gt_labels, matched_boxes


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


@torch.no_grad()
def predict_proposals(
    rpn: Any,
    anchors: list[Boxes],
    pred_objectness_logits: list[Tensor],
    pred_anchor_deltas: list[Tensor],
    image_sizes: list[tuple[int, int]],
) -> list[Instances]:
    """The proposals of every image after NMS, by score: detectron2's, bit for bit.

    Raises FloatingPointError, as detectron2 does, when boxes or scores are not finite in training.
    """
    if not rpn.training:
        return type(rpn).predict_proposals(rpn, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)
    scores, boxes, levels = [], [], []
    decoded = rpn._decode_proposals(anchors, pred_anchor_deltas)
    for level, (boxes_BR4, logits_BR) in enumerate(zip(decoded, pred_objectness_logits, strict=True)):
        best_BP, index_BP = logits_BR.topk(min(logits_BR.shape[1], rpn.pre_nms_topk[True]), dim=1)
        scores.append(best_BP)
        boxes.append(boxes_BR4.gather(1, index_BP[..., None].expand(-1, -1, 4)))
        levels.append(torch.full_like(index_BP[0], level))
    scores_BP, boxes_BP4, levels_P = torch.cat(scores, dim=1), torch.cat(boxes, dim=1), torch.cat(levels)
    finite = boxes_BP4.isfinite().all() & scores_BP.isfinite().all()
    boxes_BP4 = _clip(boxes_BP4, image_sizes)
    sides_BP2 = boxes_BP4[..., 2:] - boxes_BP4[..., :2]
    keep_BP = (sides_BP2 > rpn.min_box_size).all(-1)
    # The one wait before the NMS.
    is_finite, *counts = torch.cat([finite[None].long(), keep_BP.sum(1)]).tolist()
    if not is_finite:
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
    results = []
    for i, kept in enumerate(_indices(keep_BP, counts)):
        found = Instances(image_sizes[i])
        best = batched_nms(boxes_BP4[i][kept], scores_BP[i][kept], levels_P[kept], rpn.nms_thresh)
        chosen = kept[best[: rpn.post_nms_topk[True]]]
        found.proposal_boxes = Boxes(boxes_BP4[i][chosen])
        found.objectness_logits = scores_BP[i][chosen]
        results.append(found)
    return results


def _clip(boxes_BP4: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes within their images."""
    clipped = []
    for boxes_P4, (height, width) in zip(boxes_BP4, image_sizes, strict=True):
        x1, y1, x2, y2 = boxes_P4.unbind(-1)
        clipped.append(
            torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)
        )
    return torch.stack(clipped)


@torch.no_grad()
def label_and_sample_proposals(heads: Any, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
    """The proposals drawn of every image, with ``gt_classes`` and, where it has objects, its other ``gt_`` fields."""
    if heads.proposal_append_gt:
        proposals = add_ground_truth_to_proposals(targets, proposals)
    objects = pad_objects(targets)
    boxes_BP4 = pad_sequence([x.proposal_boxes.tensor for x in proposals], batch_first=True)
    counts_B1 = torch.tensor([[len(x)] for x in proposals])
    is_padding_BP = (torch.arange(boxes_BP4.shape[1]) >= counts_B1).to(boxes_BP4.device, non_blocking=True)
    iou_BNP = batched_iou(objects.boxes, boxes_BP4, objects.valid)
    matched_BP, labels_BP = match_anchors(heads.proposal_matcher, iou_BNP, objects.valid)
    classes_BP = objects.classes.gather(1, matched_BP)
    classes_BP = torch.where(labels_BP == 0, heads.num_classes, torch.where(labels_BP == -1, -1, classes_BP))
    drawn = draw(classes_BP.masked_fill(is_padding_BP, -1), heads, heads.num_classes)
    found = []
    for i, (positive, negative) in enumerate(drawn):
        sampled = torch.cat([positive, negative])
        regions = proposals[i][sampled]
        regions.gt_classes = classes_BP[i][sampled]
        if len(targets[i]):
            for name, value in targets[i].get_fields().items():
                if name.startswith("gt_") and not regions.has(name):
                    regions.set(name, value[matched_BP[i][sampled]])
        found.append(regions)
    storage = get_event_storage()
    storage.put_scalar("roi_head/num_fg_samples", sum(len(x) for x, _ in drawn) / len(drawn))
    storage.put_scalar("roi_head/num_bg_samples", sum(len(x) for _, x in drawn) / len(drawn))
    return found


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
    storage = get_event_storage()
    first = next(iter(sums.values()))
    if device_waits.reading_waits(first) and (storage.iter + 1) % LOG_PERIOD:
        return
    divisor = float(over)
    for name, value in sums.items():
        if divisor:
            storage.put_scalar(name, float(value) / divisor)


def pool(pooler: Any, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
    """What the pooler's own forward returns, (M, C, h, w), with one wait for the regions of all levels."""
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
    levels = torch.arange(len(pooler.level_poolers), device=levels_M.device)
    here_LM = levels_M == levels[:, None]
    output = x[0].new_zeros(len(regions_M5), x[0].shape[1], *pooler.output_size)
    for level, indices in enumerate(_indices(here_LM, here_LM.sum(1).tolist())):
        output.index_put_((indices,), pooler.level_poolers[level](x[level], regions_M5[indices]))
    return output
