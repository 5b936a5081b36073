"""POTO (Wang et al., "End-to-End Object Detection with Fully Convolutional Network", CVPR 2021): FCOS without
centerness, each object assigned to one location by what is predicted there, and no NMS.

Shape suffixes: B images, N object slots of an image, C locations that an object may get, R locations of all levels
together, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from lgd.config.experiment import Detector
from lgd.detectors.batched import (
    PaddedObjects,
    batched_iou,
    cache_anchors,
    in_parts,
    pad_objects,
    targets_of,
    to_device,
)
from lgd.detectors.common import (
    LinearTransform,
    dense_head,
    dense_levels,
    dense_pyramid,
    pixel_mean_std,
)
from lgd.detectors.dense_losses import classification_loss, giou_loss, log_positives, masked_sum
from lgd.distributed.ranks import mean_over_workers

UNWANTED = -1e6
"""Quality of giving an object a location that is none of its best."""


class POTO(FCOS):
    """detectron2's FCOS with POTO's assignment (section 3.2) and neither centerness nor NMS.

    alpha: exponent of the IoU in an assignment's quality (equation 4). box_weight: of the GIoU loss. The head gives
    class logits and box distances; ``center_sampling_radius`` (in strides) is the spatial prior's. The 3D max filtering
    and the auxiliary loss of the paper's other rows are not part of it.
    """

    def __init__(self, *, alpha: float = 0.8, box_weight: float = 2.0, **fcos: Any) -> None:
        super().__init__(box2box_transform=LinearTransform(normalize_by_size=True), **fcos)
        cache_anchors(self.anchor_generator)
        self.alpha = alpha
        self.box_weight = box_weight

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """Focal and GIoU loss, sums over the batch divided by the number of objects (mean over the workers).

        This is equation 1 with L_fg = focal + 2 GIoU at an object's location and L_bg = focal everywhere else.
        """
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors_R4 = Boxes.cat(self.anchor_generator(features)).tensor
        deltas_BR4 = torch.cat(deltas, dim=1)
        boxes_BR4 = self.box2box_transform.apply_deltas(
            deltas_BR4.flatten(0, 1), anchors_R4.repeat(len(deltas_BR4), 1)
        ).view(deltas_BR4.shape)
        objects = pad_objects(gt_instances)
        matched_BR = self.assign(anchors_R4, torch.cat(logits, dim=1).detach(), boxes_BR4.detach(), objects)
        labels_BR, gt_boxes_BR4 = targets_of(matched_BR, objects, self.num_classes)
        positive_BR = labels_BR != self.num_classes
        positives = positive_BR.sum()
        log_positives(positives, len(labels_BR))
        loss_cls = classification_loss(logits, labels_BR, self.focal_loss_alpha, self.focal_loss_gamma)
        # Where nothing is matched neither box may give a gradient, whatever was predicted.
        boxes_BR4 = torch.where(positive_BR[..., None], boxes_BR4, gt_boxes_BR4)
        loss_box = masked_sum(giou_loss(boxes_BR4, gt_boxes_BR4), positive_BR)
        count = mean_over_workers(positives.float())
        return {"loss_cls": loss_cls / count, "loss_box_reg": self.box_weight * loss_box / count}

    @torch.no_grad()
    def assign(self, anchors_R4: Tensor, logits_BRK: Tensor, boxes_BR4: Tensor, objects: PaddedObjects) -> Tensor:
        """The object of each location (B, R), -1 for none. It waits for the device once, whatever the batch."""
        best: list[tuple[Tensor, Tensor]] = []
        start = 0
        for part in in_parts(objects, len(anchors_R4)):
            images = slice(start, start + len(part.boxes))
            quality_BNR = self.quality(anchors_R4, logits_BRK[images].float().sigmoid(), boxes_BR4[images], part)
            # An object's N best locations are enough: the other N - 1 objects cannot take them all.
            best.append(quality_BNR.topk(min(quality_BNR.shape[1:]), dim=2))
            start = images.stop
        quality_BNC, location_BNC = (torch.cat(x) for x in zip(*best, strict=True))
        return self.match(quality_BNC, location_BNC, objects.valid, len(anchors_R4))

    @torch.no_grad()
    def quality(self, anchors: Tensor, scores: Tensor, boxes: Tensor, objects: PaddedObjects) -> Tensor:
        """The quality of assigning each object to each location, (B, N, R): equation 4.

        Q = [location in the object's prior] * score of the object's class^(1 - alpha) * IoU^alpha, where the prior
        is the locations inside the box and within ``center_sampling_radius`` strides of its centre, in x and in y.

        anchors: (R, 4) squares of a level's stride around the locations; scores: (B, R, K) class probabilities; boxes:
        (B, R, 4) predicted, all boxes in pixels. Outside the prior the quality is in [-2, -1], higher nearer to the
        centre: the equation has 0 there, which leaves an object without a single location in its prior (a box smaller
        than the finest stride) to chance.
        """
        x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(-1)
        strides = anchors[:, 2] - anchors[:, 0]
        x1, y1, x2, y2 = objects.boxes[:, :, None].unbind(-1)
        classes = objects.classes[:, None].expand(-1, scores.shape[1], -1)
        predicted = scores.gather(2, classes).transpose(1, 2)
        overlap = batched_iou(objects.boxes, boxes, objects.valid).clamp_(min=0)
        # A diverged prediction shall show in the loss, not stop the assignment.
        quality = (predicted ** (1 - self.alpha) * overlap**self.alpha).nan_to_num(nan=0.0)
        distance = torch.maximum((x - (x1 + x2) / 2).abs_(), (y - (y1 + y2) / 2).abs_())
        inside = torch.minimum(torch.minimum(x - x1, y - y1), torch.minimum(x2 - x, y2 - y)) > 0
        prior = inside & (distance < self.center_sampling_radius * strides)
        largest_distance = distance.amax(dim=2, keepdim=True).clamp(min=1)
        return torch.where(prior, quality, -1 - distance / largest_distance)

    @torch.no_grad()
    def match(self, quality_BNC: Tensor, location_BNC: Tensor, valid_BN: Tensor, locations: int) -> Tensor:
        """The object (0 to N - 1) of each location (B, R), -1 for none: each object gets one location of its own.

        Of all such assignments the one of the largest total quality, found by the Hungarian method (equation 3), which
        runs on the host. quality, location: of every object's best C locations, C = N or all R of them. With more
        objects than locations some objects stay without.
        """
        # Here, not at the top: scipy is a tenth of the time in which a worker starts, and few trainings need it.
        from scipy.optimize import linear_sum_assignment

        device = quality_BNC.device
        # One tensor is one wait.
        packed = torch.stack([quality_BNC.double(), location_BNC.double(), valid_BN[..., None].expand_as(quality_BNC)])
        quality, location, valid = packed.cpu().numpy()
        matched = np.full((len(quality), locations), -1)
        for image, places in enumerate(location.astype(np.int64)):
            objects = valid[image, :, 0] > 0
            if objects.any():
                useful, column = np.unique(places[objects], return_inverse=True)
                # A location that is none of an object's best is worth less than all of its best together.
                table = np.full((int(objects.sum()), len(useful)), UNWANTED)
                np.put_along_axis(table, column.reshape(table.shape[0], -1), quality[image, objects], axis=1)
                rows, columns = linear_sum_assignment(table, maximize=True)
                matched[image, useful[columns]] = rows
        return to_device(torch.from_numpy(matched), device)

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
