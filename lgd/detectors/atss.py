"""ATSS (Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
Selection", CVPR 2020): another choice of positives on detectron2's dense detector.

Shape suffixes: B images, N object slots of an image, C candidates of an object, R anchors of all levels together, K
classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from lgd.config.experiment import Detector
from lgd.detectors.batched import PaddedObjects, batched_iou, cache_anchors, in_parts, pad_objects, targets_of
from lgd.detectors.common import dense_head, dense_levels, dense_pyramid, pixel_mean_std
from lgd.detectors.dense_losses import classification_loss, decode_positive, giou_loss, log_positives, masked_sum
from lgd.detectors.fcos_fast import centerness
from lgd.distributed.ranks import mean_over_workers


class ATSS(FCOS):
    """The anchor-based ATSS of section 4: FCOS's head, towers, centerness and inference; one anchor a location.

    anchor_scale: side of a location's one square anchor over its level's stride (8 in section 4). candidates: k,
    anchors a level that an object considers (section 4.2 finds 7 to 17 alike). box_weight: of the box loss. The rest as
    detectron2's FCOS. Learnt per-level scales of the box output are left out, as in that class.
    """

    def __init__(self, *, anchor_scale: float = 8.0, candidates: int = 9, box_weight: float = 2.0, **fcos: Any) -> None:
        super().__init__(box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)), **fcos)
        strides = [self.backbone.output_shape()[x].stride for x in self.head_in_features]
        self.anchor_generator: nn.Module = DefaultAnchorGenerator(
            sizes=[[anchor_scale * s] for s in strides], aspect_ratios=[1.0], strides=strides, offset=0.5
        )
        cache_anchors(self.anchor_generator)
        self.candidates = candidates
        self.box_weight = box_weight

    @torch.no_grad()
    def match(self, anchors: list[Boxes], objects: PaddedObjects) -> Tensor:
        """The object (0 to N - 1) that each anchor (B, R) is a positive of, -1 for none: Algorithm 1 of the paper.

        An object's candidates are the k anchors of every level with the centres nearest to its own (lines 3 to 6). Of
        these its positives are the ones with an IoU of at least t = mean + deviation of its candidates' IoUs (lines 7
        to 10) and the centre inside its box (lines 11 to 15). Of several objects an anchor takes the one with the
        largest IoU (section 4.1). The deviation is the sample's (n - 1), as in the authors' code.
        """
        anchors_R4 = Boxes.cat(anchors).tensor
        centres_R2 = (anchors_R4[:, :2] + anchors_R4[:, 2:]) / 2
        gt_centres_BN2 = (objects.boxes[..., :2] + objects.boxes[..., 2:]) / 2
        # Not torch.cdist: by matrix products it loses the digits that tell neighbours apart, and otherwise a GPU starts
        # a block of threads for each of the millions of distances.
        across_BNR, down_BNR = (gt_centres_BN2[..., None, i] - centres_R2[:, i] for i in (0, 1))
        distances_BNR = across_BNR.square_().add_(down_BNR.square_()).sqrt_()
        del across_BNR, down_BNR
        nearest, start = [], 0
        for level in distances_BNR.split([len(x) for x in anchors], dim=2):
            k = min(self.candidates, level.shape[2])
            nearest.append(level.topk(k, dim=2, largest=False).indices + start)
            start += level.shape[2]
        chosen_BNC = torch.cat(nearest, dim=2)
        images, slots, candidates = chosen_BNC.shape
        overlap_BNC = batched_iou(
            objects.boxes.flatten(0, 1)[:, None],
            anchors_R4[chosen_BNC].flatten(0, 1),
            objects.valid.flatten()[:, None],
        ).view(images, slots, candidates)
        deviation_BN = overlap_BNC.std(dim=2, correction=min(1, candidates - 1))
        threshold_BN = overlap_BNC.mean(dim=2) + deviation_BN
        chosen_centres, box = centres_R2[chosen_BNC], objects.boxes[:, :, None]
        inside = ((chosen_centres > box[..., :2]) & (chosen_centres < box[..., 2:])).all(dim=-1)
        positive = (overlap_BNC >= threshold_BN[..., None]) & inside & objects.valid[..., None]
        quality_BNR = torch.full_like(distances_BNR, -1).scatter(2, chosen_BNC, overlap_BNC.masked_fill(~positive, -1))
        best_quality_BR, best_object_BR = quality_BNR.max(dim=1)
        return best_object_BR.masked_fill(best_quality_BR < 0, -1)

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (R,), K for background, and the matched boxes (R, 4) of every image."""
        gt_labels: list[Tensor] = []
        matched_boxes: list[Tensor] = []
        for objects in in_parts(pad_objects(gt_instances), sum(len(x) for x in anchors)):
            labels, boxes = targets_of(self.match(anchors, objects), objects, self.num_classes)
            gt_labels += labels.unbind()
            matched_boxes += boxes.unbind()
        return gt_labels, matched_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss; GIoU loss, weighted by the centerness targets; binary cross-entropy of the centerness.

        Each is a sum over the batch, divided by the number of positives (the second by the sum of its weights), both
        averaged over the workers: section 4.1 with FCOS's losses and the authors' normalisers. Without any positive
        the last two are zero, with zero gradients.
        """
        labels_BR, boxes_BR4 = torch.stack(gt_labels), torch.stack(gt_boxes)
        positive_BR = labels_BR != self.num_classes
        positives = positive_BR.sum()
        log_positives(positives, len(labels_BR))
        loss_cls = classification_loss(pred_logits, labels_BR, self.focal_loss_alpha, self.focal_loss_gamma)
        anchors_R4 = Boxes.cat(anchors).tensor
        # A background anchor's box is its own: a target without a division by zero.
        boxes_BR4 = torch.where(positive_BR[..., None], boxes_BR4, anchors_R4)
        weights_BR = torch.where(positive_BR, centerness(anchors_R4, boxes_BR4), 0)
        decoded_BR4 = decode_positive(
            self.box2box_transform, torch.cat(pred_anchor_deltas, dim=1), anchors_R4, positive_BR
        )
        loss_box = (giou_loss(decoded_BR4, boxes_BR4) * weights_BR).sum()
        logits_BR = torch.cat(pred_centerness, dim=1).squeeze(2).float()
        entropy_BR = F.binary_cross_entropy_with_logits(logits_BR, weights_BR, reduction="none")
        count = mean_over_workers(positives.float())
        return {
            "loss_cls": loss_cls / count,
            "loss_box_reg": self.box_weight * loss_box / mean_over_workers(weights_BR.sum()),
            "loss_centerness": masked_sum(entropy_BR, positive_BR) / count,
        }


def build(settings: Detector, num_classes: int) -> ATSS:
    """ATSS on p3 to p7, head with GN, p6 and p7 from p5; NMS at 0.6."""
    return ATSS(
        backbone=dense_pyramid(settings, p6_from="p5"),
        head=FCOSHead(**dense_head(settings, num_classes)),
        head_in_features=dense_levels(settings)[0],
        num_classes=num_classes,
        anchor_scale=settings.resolved_anchor_scale,
        test_score_thresh=0.2,
        test_nms_thresh=0.6,
        **pixel_mean_std(settings.backbone),
    )
