"""RetinaNet's losses and label assignment, equal to detectron2's in exact arithmetic, without a wait for the device.

Shape suffixes: B images, N object slots of an image, R anchors of all levels, r of one level, K classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from lgd.detectors.batched import batched_iou, cache_anchors, in_parts, match_anchors, pad_objects
from lgd.detectors.dense_losses import classification_loss, log_positives


def use(detector: Any) -> None:
    """Replace two methods of detectron2's own RetinaNet by those of this module.

    Box losses other than smooth L1 on the standard coding stay as they are.
    """
    if (
        type(detector.box2box_transform) is Box2BoxTransform
        and detector.box_reg_loss_type == "smooth_l1"
        # fvcore's sign for no weighting at all, and what an image without objects is labelled with.
        and detector.focal_loss_alpha >= 0
        and detector.anchor_matcher.labels[0] == 0
    ):
        detector.label_anchors = partial(label_anchors, detector)
        detector.losses = partial(losses, detector)
        cache_anchors(detector.anchor_generator)


@torch.no_grad()
def label_anchors(
    detector: Any, anchors: list[Boxes], gt_instances: list[Instances]
) -> tuple[list[Tensor], list[Tensor]]:
    """Labels (R,) of every image, K for background and -1 for what is ignored, and the matched boxes (R, 4)."""
    anchors_R4 = Boxes.cat(anchors).tensor
    gt_labels: list[Tensor] = []
    matched_boxes: list[Tensor] = []
    for objects in in_parts(pad_objects(gt_instances), len(anchors_R4)):
        matched_idxs, match_labels = match_anchors(
            detector.anchor_matcher, batched_iou(objects.boxes, anchors_R4, objects.valid), objects.valid
        )
        labels = objects.classes.gather(1, matched_idxs)
        labels = torch.where(match_labels == 0, detector.num_classes, torch.where(match_labels == -1, -1, labels))
        gt_labels += labels.unbind()
        matched_boxes += objects.boxes.gather(1, matched_idxs[..., None].expand(-1, -1, 4)).unbind()
    return gt_labels, matched_boxes


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
    log_positives(positives, len(labels_BR))
    normalizer = detector._ema_update("loss_normalizer", positives.clamp(min=1).double(), 100).float()
    classification = classification_loss(pred_logits, labels_BR, detector.focal_loss_alpha, detector.focal_loss_gamma)
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
