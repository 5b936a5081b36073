"""POTO (Wang et al., "End-to-End Object Detection with Fully Convolutional Network", CVPR 2021): FCOS without
centerness, each object assigned to one location by what is predicted there, and no NMS.

Shape suffixes: B images, M objects of an image, R locations of all levels together, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou, pairwise_point_box_distance
from detectron2.utils.events import get_event_storage
from fvcore.nn import giou_loss, sigmoid_focal_loss_jit
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lgd.config.experiment import Detector
from lgd.detectors.common import (
    LinearTransform,
    dense_head,
    dense_levels,
    dense_pyramid,
    matched_targets,
    pixel_mean_std,
)
from lgd.distributed.ranks import mean_over_workers


class POTO(FCOS):
    """detectron2's FCOS with POTO's assignment (section 3.2) and neither centerness nor NMS.

    alpha: exponent of the IoU in an assignment's quality (equation 4). box_weight: of the GIoU loss. The head gives
    class logits and box distances; ``center_sampling_radius`` (in strides) is the spatial prior's. The 3D max filtering
    and the auxiliary loss of the paper's other rows are not part of it.
    """

    def __init__(self, *, alpha: float = 0.8, box_weight: float = 2.0, **fcos: Any) -> None:
        super().__init__(box2box_transform=LinearTransform(normalize_by_size=True), **fcos)
        self.alpha = alpha
        self.box_weight = box_weight

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Focal and GIoU loss, sums over the batch divided by the number of objects (mean over the workers).

        This is equation 1 with L_fg = focal + 2 GIoU at an object's location and L_bg = focal everywhere else.
        """
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        logits_BRK, deltas_BR4 = torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
        anchors_R4 = Boxes.cat(self.anchor_generator(features)).tensor
        boxes_BR4 = torch.stack([self.box2box_transform.apply_deltas(x, anchors_R4) for x in deltas_BR4])
        scores_BRK = logits_BRK.detach().float().sigmoid()
        targets = [
            matched_targets(self.match(self.quality(anchors_R4, scores, boxes, x)), x, self.num_classes)
            for scores, boxes, x in zip(scores_BRK, boxes_BR4.detach(), gt_instances, strict=True)
        ]
        labels_BR, gt_boxes_BR4 = (torch.stack(x) for x in zip(*targets, strict=True))
        image, location = (labels_BR != self.num_classes).nonzero(as_tuple=True)
        get_event_storage().put_scalar("num_pos_anchors", len(image) / len(labels_BR))
        loss_cls = sigmoid_focal_loss_jit(
            logits_BRK,
            F.one_hot(labels_BR, self.num_classes + 1)[..., :-1].to(logits_BRK.dtype),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            reduction="sum",
        )
        loss_box = giou_loss(boxes_BR4[image, location], gt_boxes_BR4[image, location], reduction="sum")
        positives = mean_over_workers(boxes_BR4.new_tensor(float(len(image))))
        return {"loss_cls": loss_cls / positives, "loss_box_reg": self.box_weight * loss_box / positives}

    @torch.no_grad()
    def quality(self, anchors: Tensor, scores: Tensor, boxes: Tensor, instances: Instances) -> Tensor:
        """The quality of assigning each object to each location, (M, R): equation 4.

        Q = [location in the object's prior] * score of the object's class^(1 - alpha) * IoU^alpha, where the prior
        is the locations inside the box and within ``center_sampling_radius`` strides of its centre, in x and in y.

        anchors: (R, 4) squares of a level's stride around the locations; scores: (R, K) class probabilities; boxes:
        (R, 4) predicted, all boxes in pixels. Outside the prior the quality is in [-2, -1], higher nearer to the
        centre: the equation has 0 there, which leaves an object without a single location in its prior (a box smaller
        than the finest stride) to chance.
        """
        locations = Boxes(anchors).get_centers()
        strides = anchors[:, 2] - anchors[:, 0]
        predicted = scores[:, instances.gt_classes].T
        overlap = pairwise_iou(instances.gt_boxes, Boxes(boxes))
        # A diverged prediction shall show in the loss, not stop the assignment.
        quality = (predicted ** (1 - self.alpha) * overlap**self.alpha).nan_to_num(nan=0.0)
        distance = (locations[None] - instances.gt_boxes.get_centers()[:, None]).abs().amax(dim=2)
        inside = pairwise_point_box_distance(locations, instances.gt_boxes).amin(dim=2).T > 0
        prior = inside & (distance < self.center_sampling_radius * strides)
        largest_distance = distance.amax(dim=1, keepdim=True).clamp(min=1)
        return torch.where(prior, quality, -1 - distance / largest_distance)

    @torch.no_grad()
    def match(self, quality: Tensor) -> Tensor:
        """The object (0 to M - 1) of each location (R,), -1 for none: each object gets one location of its own.

        Of all such assignments the one of the largest total quality (M, R), found by the Hungarian method (equation
        3). With more objects than locations some objects stay without.
        """
        objects, locations = quality.shape
        matched = torch.full((locations,), -1, dtype=torch.long, device=quality.device)
        if objects == 0:
            return matched
        # An object's M best locations are enough: the other M - 1 objects cannot take them all.
        useful = quality.topk(min(objects, locations), dim=1).indices.unique()
        rows, columns = linear_sum_assignment(quality[:, useful].cpu().numpy(), maximize=True)
        matched[useful[torch.as_tensor(columns, device=useful.device)]] = torch.as_tensor(rows, device=matched.device)
        return matched

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """The ``max_detections_per_image`` highest class scores of each image, with their boxes; no NMS."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        results = []
        for i, image_size in enumerate(images.image_sizes):
            detections = self._decode_multi_level_predictions(
                anchors,
                [x[i].sigmoid() for x in logits],
                [x[i] for x in deltas],
                self.test_score_thresh,
                self.test_topk_candidates,
                image_size,
            )
            results.append(
                detections[detections.scores.topk(min(len(detections), self.max_detections_per_image)).indices]
            )
        return results


def build(settings: Detector, num_classes: int) -> POTO:
    """POTO on p3 to p7, head with GN, p6 and p7 from p5. It has no anchors: ``anchor_scale`` is not read."""
    return POTO(
        backbone=dense_pyramid(settings, p6_from="p5"),
        head=RetinaNetHead(**dense_head(settings, num_classes), num_anchors=1),
        head_in_features=dense_levels(settings)[0],
        num_classes=num_classes,
        test_score_thresh=0.05,
        **pixel_mean_std(settings.backbone),
    )
