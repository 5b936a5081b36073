"""FCOS's label assignment and losses, equal to detectron2's in exact arithmetic, without a wait for the device.

Shape suffixes: B images, N object slots of an image, R locations of all levels, K classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes, Instances
from torch import Tensor

from lgd.detectors.batched import PaddedObjects, cache_anchors, in_parts, pad_objects
from lgd.detectors.dense_losses import classification_loss, decode_positive, giou_loss, log_positives, masked_sum

LARGER_THAN_ANY_AREA = 1e8
"""detectron2's: of several objects the one with the smallest area wins, by the largest of this minus the area."""


def use(detector: Any) -> None:
    """Replace two methods of detectron2's own FCOS by those of this module."""
    if isinstance(detector.box2box_transform, Box2BoxTransformLinear) and detector.focal_loss_alpha >= 0:
        detector.label_anchors = partial(label_anchors, detector)
        detector.losses = partial(losses, detector)
        cache_anchors(detector.anchor_generator)


@torch.no_grad()
def label_anchors(
    detector: Any, anchors: list[Boxes], gt_instances: list[Instances]
) -> tuple[list[Tensor], list[Tensor]]:
    """Labels (R,) of every image, K for background, and the matched boxes (R, 4), of the first object for background.

    FCOS, section 3.2, with center sampling, as in detectron2.
    """
    anchors_R4 = Boxes.cat(anchors).tensor
    sizes_R = anchors_R4[:, 2] - anchors_R4[:, 0]
    lower_R, upper_R = sizes_R * 4, sizes_R * 8
    lower_R[: len(anchors[0])] = 0
    upper_R[-len(anchors[-1]) :] = float("inf")
    gt_labels: list[Tensor] = []
    matched_boxes: list[Tensor] = []
    for objects in in_parts(pad_objects(gt_instances), len(anchors_R4)):
        quality_BNR = _quality(objects, anchors_R4, sizes_R * detector.center_sampling_radius, lower_R, upper_R)
        quality_BR, matched_BR = quality_BNR.max(dim=1)
        background = quality_BR < 1e-5
        matched_BR = matched_BR.masked_fill(background, 0)
        gt_labels += objects.classes.gather(1, matched_BR).masked_fill(background, detector.num_classes).unbind()
        matched_boxes += objects.boxes.gather(1, matched_BR[..., None].expand(-1, -1, 4)).unbind()
    return gt_labels, matched_boxes


def _quality(objects: PaddedObjects, anchors_R4: Tensor, radius_R: Tensor, lower_R: Tensor, upper_R: Tensor) -> Tensor:
    """How well each location suits each object, (B, N, R): 0 where it does not, else larger for smaller objects.

    radius: how near to an object's centre a location must be, in x and in y. lower, upper: between which the largest of
    its distances to the object's sides must be. All in pixels.
    """
    x, y = ((anchors_R4[:, :2] + anchors_R4[:, 2:]) / 2).unbind(-1)
    x1, y1, x2, y2 = objects.boxes[:, :, None].unbind(-1)
    fits = (x - (x1 + x2) / 2).abs_() < radius_R
    fits &= (y - (y1 + y2) / 2).abs_() < radius_R
    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
    fits &= torch.minimum(torch.minimum(left, top), torch.minimum(right, bottom)) > 0
    largest = torch.maximum(torch.maximum(left, top), torch.maximum(right, bottom))
    fits &= (largest > lower_R) & (largest < upper_R) & objects.valid[..., None]
    areas = (x2 - x1) * (y2 - y1)
    return fits.float() * (LARGER_THAN_ANY_AREA - areas)


def losses(
    detector: Any,
    anchors: list[Boxes],
    pred_logits: list[Tensor],
    gt_labels: list[Tensor],
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    pred_centerness: list[Tensor],
) -> dict[str, Tensor]:
    """Focal loss, GIoU loss and cross-entropy of the centerness over the running mean of the number of positives."""
    labels_BR, boxes_BR4 = torch.stack(gt_labels), torch.stack(gt_boxes)
    positive_BR = (labels_BR >= 0) & (labels_BR != detector.num_classes)
    positives = positive_BR.sum()
    log_positives(positives, len(labels_BR))
    normalizer = detector._ema_update("loss_normalizer", positives.clamp(min=1).double(), 300).float()
    classification = classification_loss(pred_logits, labels_BR, detector.focal_loss_alpha, detector.focal_loss_gamma)
    anchors_R4 = Boxes.cat(anchors).tensor
    # A background location's box is its own square: a target without a division by zero.
    boxes_BR4 = torch.where(positive_BR[..., None], boxes_BR4, anchors_R4)
    decoded_BR4 = decode_positive(
        detector.box2box_transform, torch.cat(pred_anchor_deltas, dim=1), anchors_R4, positive_BR
    )
    logits_BR = torch.cat(pred_centerness, dim=1).squeeze(2).float()
    entropy_BR = F.binary_cross_entropy_with_logits(logits_BR, centerness(anchors_R4, boxes_BR4), reduction="none")
    return {
        "loss_fcos_cls": classification / normalizer,
        "loss_fcos_loc": masked_sum(giou_loss(decoded_BR4, boxes_BR4), positive_BR) / normalizer,
        "loss_fcos_ctr": masked_sum(entropy_BR, positive_BR) / normalizer,
    }


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central the anchors' centres lie in their boxes, (..., 4) both, in pixels: (...) in (0, 1], 1 in the middle.

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of the distances to the sides (FCOS, equation 3). The centres
    must lie inside.
    """
    x, y = ((anchors[..., :2] + anchors[..., 2:]) / 2).unbind(-1)
    left, top, right, bottom = x - boxes[..., 0], y - boxes[..., 1], boxes[..., 2] - x, boxes[..., 3] - y
    across = torch.minimum(left, right) / torch.maximum(left, right)
    along = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * along).sqrt()
