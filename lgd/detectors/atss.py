"""ATSS (Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
Selection", CVPR 2020): another choice of positives on detectron2's dense detector.

Shape suffixes: B images, M objects of an image, R anchors of all levels together, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from fvcore.nn import giou_loss, sigmoid_focal_loss_jit
from torch import Tensor, nn

from lgd.config.experiment import Detector
from lgd.detectors.common import dense_head, dense_levels, dense_pyramid, matched_targets, pixel_mean_std
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
        self.candidates = candidates
        self.box_weight = box_weight

    @torch.no_grad()
    def match(self, anchors: list[Boxes], gt_boxes: Boxes) -> Tensor:
        """The object (0 to M - 1) that each anchor (R,) is a positive of, -1 for none: Algorithm 1 of the paper.

        An object's candidates are the k anchors of every level with the centres nearest to its own (lines 3 to 6). Of
        these its positives are the ones with an IoU of at least t = mean + deviation of its candidates' IoUs (lines 7
        to 10) and the centre inside its box (lines 11 to 15). Of several objects an anchor takes the one with the
        largest IoU (section 4.1). The deviation is the sample's (n - 1), as in the authors' code.
        """
        all_anchors = Boxes.cat(anchors)
        matched = torch.full((len(all_anchors),), -1, dtype=torch.long, device=all_anchors.device)
        if len(gt_boxes) == 0:
            return matched
        centres, gt_centres = all_anchors.get_centers(), gt_boxes.get_centers()
        # The default way of measuring many distances loses the digits that tell neighbours apart.
        distances_MR = torch.cdist(gt_centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, start = [], 0
        for level in distances_MR.split([len(x) for x in anchors], dim=1):
            k = min(self.candidates, level.shape[1])
            nearest.append(level.topk(k, dim=1, largest=False).indices + start)
            start += level.shape[1]
        chosen_MC = torch.cat(nearest, dim=1)
        overlap_MC = pairwise_iou(gt_boxes, all_anchors).gather(1, chosen_MC)
        deviation = overlap_MC.std(dim=1, correction=min(1, chosen_MC.shape[1] - 1))
        threshold = overlap_MC.mean(dim=1) + deviation
        chosen_centres, box = centres[chosen_MC], gt_boxes.tensor[:, None]
        inside = ((chosen_centres > box[..., :2]) & (chosen_centres < box[..., 2:])).all(dim=-1)
        positive = (overlap_MC >= threshold[:, None]) & inside
        quality_MR = torch.full_like(distances_MR, -1).scatter(1, chosen_MC, overlap_MC.masked_fill(~positive, -1))
        best_quality, best_object = quality_MR.max(dim=0)
        return torch.where(best_quality < 0, matched, best_object)

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (R,), K for background, and the matched boxes (R, 4) of every image."""
        targets = [matched_targets(self.match(anchors, x.gt_boxes), x, self.num_classes) for x in gt_instances]
        return [labels for labels, _ in targets], [boxes for _, boxes in targets]

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
        image, anchor_index = (labels_BR != self.num_classes).nonzero(as_tuple=True)
        get_event_storage().put_scalar("num_pos_anchors", len(image) / len(labels_BR))
        logits_BRK = torch.cat(pred_logits, dim=1)
        targets = F.one_hot(labels_BR, self.num_classes + 1)[..., :-1]
        loss_cls = sigmoid_focal_loss_jit(
            logits_BRK,
            targets.to(logits_BRK.dtype),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            reduction="sum",
        )
        anchor, box = Boxes.cat(anchors).tensor[anchor_index], boxes_BR4[image, anchor_index]
        decoded = self.box2box_transform.apply_deltas(torch.cat(pred_anchor_deltas, dim=1)[image, anchor_index], anchor)
        weights = centerness(anchor, box)
        loss_box = (giou_loss(decoded, box) * weights).sum()
        loss_centerness = F.binary_cross_entropy_with_logits(
            torch.cat(pred_centerness, dim=1).squeeze(2)[image, anchor_index].float(), weights, reduction="sum"
        )
        positives = mean_over_workers(weights.new_tensor(float(len(image))))
        return {
            "loss_cls": loss_cls / positives,
            "loss_box_reg": self.box_weight * loss_box / mean_over_workers(weights.sum()),
            "loss_centerness": loss_centerness / positives,
        }


def centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central the anchors' centres lie in their boxes, (R, 4) both, in pixels: (R,) in (0, 1], 1 in the middle.

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of the distances to the sides (FCOS, equation 3). The centres
    must lie inside.
    """
    left, top, right, bottom = Box2BoxTransformLinear(normalize_by_size=False).get_deltas(anchors, boxes).unbind(1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    along = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * along).sqrt()


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
