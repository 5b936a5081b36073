"""R-CNN's label assignment and sampling, the same samples as detectron2's from the same random numbers.

How many random numbers are drawn depends on how many positives and negatives there are, so the host has to know; the
numbers of anchors, of proposals and of regions are read together, once a pass.

Shape suffixes: B images, N object slots of an image, K proposals of an image, Q proposals and objects of an image, R
anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lgd import device_waits
from lgd.detectors.batched import batched_iou, in_parts, match_anchors, pad_objects
from lgd.detectors.rcnn_masks import RegionMasks
from lgd.detectors.rcnn_proposals import Candidates, Proposals, choose_at_once, choose_by_image, find_candidates
from lgd.distributed import ranks

OBJECT_LOGIT = math.log((1 - 1e-10) / (1 - (1 - 1e-10)))
"""Objectness that detectron2 gives to an object that is appended to the proposals."""

Counts = Sequence[Sequence[int]]
"""How many positives, and how many negatives, each image has."""


class Regions(NamedTuple):
    """Proposals of a batch, padded, the objects appended, with their labels."""

    boxes: Tensor
    """(B, Q, 4), pixels."""
    logits: Tensor
    """(B, Q), objectness."""
    classes: Tensor
    """(B, Q): the number of classes for background, -1 for what is ignored and for padding."""
    matched: Tensor
    """(B, Q): the object that a region is matched to."""


class LabelledProposals(list[Instances]):
    """The RPN's proposals with what ``label_and_sample_proposals`` will need."""

    def __init__(self, proposals: Sequence[Instances], regions: Regions, counts: Counts) -> None:
        super().__init__(proposals)
        self.regions = regions
        self.counts = counts


class SampledRegions(list[Instances]):
    """The regions drawn of each image, and how many of them, the first ones, are foreground."""

    def __init__(self, regions: Sequence[Instances], foreground: Sequence[int]) -> None:
        super().__init__(regions)
        self.foreground = foreground


def count_labels(labels_BR: Tensor, background: int) -> Tensor:
    """How many positives, and how many negatives, each image has, (2, B); labels: -1 for what is ignored."""
    negative_BR = labels_BR == background
    return torch.stack([((labels_BR != -1) & ~negative_BR).sum(1), negative_BR.sum(1)])


def draw(labels_BR: Tensor, counts: Counts, part: Any, background: int) -> list[tuple[Tensor, Tensor]]:
    """Indices of the positives and of the negatives that are drawn of each image: detectron2's ``subsample_labels``.

    counts: what :func:`count_labels` says. part: has ``batch_size_per_image`` and ``positive_fraction``.
    """
    negative_BR = labels_BR == background
    masks = ((labels_BR != -1) & ~negative_BR, negative_BR)
    indices = [indices_of_true(mask, count) for mask, count in zip(masks, counts, strict=True)]
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


def indices_of_true(mask_BR: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Where each row of the mask is true, ascending; ``counts`` says how often that is."""
    return torch.nonzero_static(mask_BR, size=sum(counts))[:, 1].split(list(counts))


@torch.no_grad()
def assign_anchors(rpn: Any, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[Tensor, list[Tensor]]:
    """Labels (B, R), 1 for positive, 0 for background, -1 for ignored, and the matched boxes (R, 4) of every image."""
    anchors_R4 = Boxes.cat(anchors).tensor
    labels: list[Tensor] = []
    matched_boxes: list[Tensor] = []
    for objects in in_parts(pad_objects(gt_instances), len(anchors_R4)):
        iou_BNR = batched_iou(objects.boxes, anchors_R4, objects.valid)
        matched_BR, labels_BR = match_anchors(rpn.anchor_matcher, iou_BNR, objects.valid)
        matched_boxes += objects.boxes.gather(1, matched_BR[..., None].expand(-1, -1, 4)).unbind()
        labels.append(labels_BR)
    return torch.cat(labels), matched_boxes


@torch.no_grad()
def assign_regions(
    heads: Any, boxes_BK4: Tensor, logits_BK: Tensor, valid_BK: Tensor, targets: list[Instances]
) -> Regions:
    """The labels of padded proposals, which are ``valid`` where they are no padding, and of the appended objects."""
    objects = pad_objects(targets)
    boxes_BQ4, logits_BQ, valid_BQ = boxes_BK4, logits_BK, valid_BK
    if heads.proposal_append_gt:
        boxes_BQ4 = torch.cat([boxes_BK4, objects.boxes], dim=1)
        logits_BQ = torch.cat([logits_BK, torch.full_like(objects.boxes[..., 0], OBJECT_LOGIT)], dim=1)
        valid_BQ = torch.cat([valid_BK, objects.valid], dim=1)
    iou_BNQ = batched_iou(objects.boxes, boxes_BQ4, objects.valid)
    matched_BQ, labels_BQ = match_anchors(heads.proposal_matcher, iou_BNQ, objects.valid)
    classes_BQ = objects.classes.gather(1, matched_BQ)
    classes_BQ = torch.where(labels_BQ == 0, heads.num_classes, torch.where(labels_BQ == -1, -1, classes_BQ))
    return Regions(boxes_BQ4, logits_BQ, classes_BQ.masked_fill(~valid_BQ, -1), matched_BQ)


def rpn_forward(
    rpn: Any, heads: Any, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
) -> tuple[list[Instances], dict[str, Tensor]]:
    """Proposals and losses, as detectron2's RPN returns them.

    heads: ROI heads with ``assign_regions``, the labels of whose regions are assigned here; None for others. Raises
    FloatingPointError, as detectron2 does, when boxes or scores are not finite in training. Of several workers one may
    be alone with that, and the others would wait for it: there the losses are NaN, which ends all of them where losses
    are next read, or is a step that GradScaler skips.
    """
    if not rpn.training:
        return type(rpn).forward(rpn, images, features, gt_instances)
    assert gt_instances is not None, "RPN requires gt_instances in training!"
    levels = [features[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator(levels)
    logits, deltas = rpn.rpn_head(levels)
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
    box_dim = rpn.anchor_generator.box_dim
    deltas = [x.view(len(x), -1, box_dim, *x.shape[-2:]).permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas]
    labels_BR, gt_boxes = rpn.assign_anchors(anchors, gt_instances)
    with torch.no_grad():
        candidates = find_candidates(rpn, anchors, logits, deltas, images.image_sizes)
        diverged = False
        try:
            proposals, regions, (kept, *counts) = _propose(rpn, heads, candidates, labels_BR, gt_instances)
        except FloatingPointError:
            if ranks.world_size() == 1:
                raise
            diverged, candidates = True, candidates.finite_alone()
            proposals, regions, (kept, *counts) = _propose(rpn, heads, candidates, labels_BR, gt_instances)
        gt_labels = [
            torch.full_like(labels_R, -1).scatter_(0, positive, 1).scatter_(0, negative, 0)
            for labels_R, (positive, negative) in zip(labels_BR, draw(labels_BR, counts[:2], rpn, 0), strict=True)
        ]
    losses = rpn.losses(anchors, logits, gt_labels, deltas, gt_boxes)
    if diverged:
        losses = {name: x * math.nan for name, x in losses.items()}
    found = proposals.instances(images.image_sizes, kept)
    return found if regions is None else LabelledProposals(found, regions, counts[2:]), losses


def _propose(
    rpn: Any, heads: Any, candidates: Candidates, labels_BR: Tensor, targets: list[Instances]
) -> tuple[Proposals, Regions | None, list[list[int]]]:
    """Proposals, the heads' regions, and numbers of each image, read at once: of proposals, of positive and of negative
    anchors, of positive and of negative regions."""
    choose = choose_at_once if device_waits.reading_waits(labels_BR) else choose_by_image
    proposals = choose(candidates, rpn.nms_thresh, rpn.post_nms_topk[True])
    counts = [proposals.counts[None], count_labels(labels_BR, 0)]
    regions: Regions | None = None
    if heads is not None:
        regions = heads.assign_regions(proposals.boxes, proposals.logits, proposals.valid, targets)
        counts.append(count_labels(regions.classes, heads.num_classes))
    # The one wait of the pass before regions are pooled.
    finite, *numbers = torch.cat([candidates.finite[None], torch.cat(counts).flatten()]).tolist()
    if not finite:
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
    images = len(labels_BR)
    return proposals, regions, [numbers[i : i + images] for i in range(0, len(numbers), images)]


@torch.no_grad()
def label_and_sample_proposals(heads: Any, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
    """The proposals drawn of every image, with ``gt_classes`` and, where it has objects, its other ``gt_`` fields."""
    if isinstance(proposals, LabelledProposals):
        regions, counts = proposals.regions, proposals.counts
    else:
        regions = _regions_of(heads, proposals, targets)
        counts = count_labels(regions.classes, heads.num_classes).tolist()
    drawn = draw(regions.classes, counts, heads, heads.num_classes)
    found = []
    for i, (positive, negative) in enumerate(drawn):
        sampled = torch.cat([positive, negative])
        each = Instances(proposals[i].image_size)
        each.proposal_boxes = Boxes(regions.boxes[i][sampled])
        each.objectness_logits = regions.logits[i][sampled]
        each.gt_classes = regions.classes[i][sampled]
        if len(targets[i]):
            for name, value in targets[i].get_fields().items():
                if name.startswith("gt_") and not each.has(name):
                    matched = regions.matched[i][sampled]
                    # Another mask head may read more of masks than RegionMasks have.
                    is_mask = isinstance(value, (PolygonMasks, BitMasks)) and _has_standard_mask_head(heads)
                    each.set(name, RegionMasks(value, matched) if is_mask else value[matched])
        found.append(each)
    storage = get_event_storage()
    storage.put_scalar("roi_head/num_fg_samples", sum(len(x) for x, _ in drawn) / len(drawn))
    storage.put_scalar("roi_head/num_bg_samples", sum(len(x) for _, x in drawn) / len(drawn))
    return SampledRegions(found, [len(x) for x, _ in drawn])


def _has_standard_mask_head(heads: Any) -> bool:
    return type(getattr(heads, "mask_head", None)) is MaskRCNNConvUpsampleHead


def _regions_of(heads: Any, proposals: Sequence[Instances], targets: list[Instances]) -> Regions:
    """Of proposals that are another RPN's."""
    boxes_BK4 = pad_sequence([x.proposal_boxes.tensor for x in proposals], batch_first=True)
    logits_BK = pad_sequence([x.objectness_logits for x in proposals], batch_first=True)
    valid_BK = pad_sequence(
        [torch.ones_like(x.objectness_logits, dtype=torch.bool) for x in proposals], batch_first=True
    )
    return heads.assign_regions(boxes_BK4, logits_BK, valid_BK, targets)
