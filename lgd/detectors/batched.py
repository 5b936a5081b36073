"""Anchors and the objects matched to them, a batch at once and without a wait for the device.

detectron2's loops over the images ask the device for counts and places (``nonzero``, boolean indices, ``.item()``)
several times an image. Here objects are padded to a batch.

Shape suffixes: B images, N object slots of an image, R anchors or locations of all levels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MAX_PAIRS = 32 * 2**20
"""Pairs of an object and an anchor that are compared at once: as many images as have no more together."""

CACHED_GRIDS = 32
"""Sizes of feature pyramids whose anchors are kept: 3 MiB each at the paper's size."""


class PaddedObjects(NamedTuple):
    """The objects of a batch, at least one slot an image."""

    boxes: Tensor
    """(B, N, 4), pixels; zero in an empty slot."""
    classes: Tensor
    """(B, N), 0 in an empty slot."""
    valid: Tensor
    """(B, N), bool: whether the slot holds an object."""


def pad_objects(instances: Sequence[Instances]) -> PaddedObjects:
    """The objects of all images, padded to as many as the fullest one has."""
    boxes = pad_sequence([x.gt_boxes.tensor for x in instances], batch_first=True)
    classes = pad_sequence([x.gt_classes for x in instances], batch_first=True)
    valid = pad_sequence([torch.ones_like(x.gt_classes, dtype=torch.bool) for x in instances], batch_first=True)
    if boxes.shape[1] == 0:
        boxes, classes, valid = (x.new_zeros(len(x), 1, *x.shape[2:]) for x in (boxes, classes, valid))
    return PaddedObjects(boxes, classes, valid)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """``x``, of the host, on ``device``, without a wait."""
    # From pageable memory the copy would be waited for.
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def in_parts(objects: PaddedObjects, anchors: int) -> Iterator[PaddedObjects]:
    """``objects`` of a few images at a time, so that no tensor holds more than ``MAX_PAIRS`` pairs with ``anchors``."""
    images = max(1, MAX_PAIRS // (objects.boxes.shape[1] * max(1, anchors)))
    for part in zip(*(x.split(images) for x in objects), strict=True):
        yield PaddedObjects(*part)


def batched_iou(boxes_BN4: Tensor, anchors_R4: Tensor, valid_BN: Tensor) -> Tensor:
    """IoU (B, N, R) of objects and anchors, by the arithmetic of detectron2's pairwise_iou; -1 for padding.

    anchors: (R, 4), or (B, R, 4) where every image has its own.
    """
    x1, y1, x2, y2 = boxes_BN4[:, :, None].unbind(-1)
    left, top, right, bottom = (anchors_R4 if anchors_R4.dim() == 2 else anchors_R4[:, None]).unbind(-1)
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)
    height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0)
    intersection = width.mul_(height)
    areas = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)
    iou = torch.where(intersection > 0, intersection / areas.sub_(intersection), 0.0)
    return iou.masked_fill_(~valid_BN[..., None], -1)


def targets_of(matched_BR: Tensor, objects: PaddedObjects, num_classes: int) -> tuple[Tensor, Tensor]:
    """Labels (B, R) and boxes (B, R, 4) of the objects that ``matched`` names; K and a zero box where that is -1."""
    unmatched = matched_BR < 0
    slot = matched_BR.clamp(min=0)
    labels = objects.classes.gather(1, slot).masked_fill(unmatched, num_classes)
    boxes = objects.boxes.gather(1, slot[..., None].expand(-1, -1, 4)).masked_fill(unmatched[..., None], 0)
    return labels, boxes


def match_anchors(matcher: Any, iou_BNR: Tensor, valid_BN: Tensor) -> tuple[Tensor, Tensor]:
    """detectron2's Matcher for a whole batch: matched indices (B, R) of objects and match labels (B, R).

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


def cache_anchors(generator: Any) -> None:
    """Let detectron2's own anchor generator keep its anchors by size of the feature pyramid; others stay as they are.

    It makes them anew in each pass, on the CPU first, and waits for the copies; here a size that was not seen yet, as
    multi-scale training of few images a step has many, is made where it is used.
    """
    if type(generator) is DefaultAnchorGenerator:
        generator._grid_anchors = _CachedGridAnchors(generator)


def _grid_anchors(generator: DefaultAnchorGenerator, grid_sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """detectron2's anchors (R, 4) of each level, on the device of the generator's cell anchors."""
    anchors = []
    cells = generator.cell_anchors.buffers()
    for (height, width), stride, cell_A4 in zip(grid_sizes, generator.strides, cells, strict=False):
        # Whole multiples of half a stride at most, which float32 holds exactly wherever they are computed.
        down, across = (
            torch.arange(generator.offset * stride, x * stride, step=stride, dtype=torch.float32, device=cell_A4.device)
            for x in (height, width)
        )
        y, x = (grid.reshape(-1) for grid in torch.meshgrid(down, across, indexing="ij"))
        anchors.append((torch.stack((x, y, x, y), dim=1)[:, None] + cell_A4).reshape(-1, 4))
    return anchors


class _CachedGridAnchors:
    """An anchor generator's anchors of the last ``CACHED_GRIDS`` sizes of feature pyramids."""

    def __init__(self, generator: DefaultAnchorGenerator) -> None:
        self._generator = generator
        self._cache: OrderedDict[Any, list[Tensor]] = OrderedDict()

    def __call__(self, grid_sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        cell_anchors = next(self._generator.cell_anchors.buffers())
        key = (tuple(tuple(x) for x in grid_sizes), cell_anchors.device, cell_anchors.dtype)
        if key not in self._cache:
            self._cache[key] = _grid_anchors(self._generator, grid_sizes)
            if len(self._cache) > CACHED_GRIDS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return list(self._cache[key])
