"""Mask R-CNN's mask loss as detectron2 computes it, its targets made on the device, for all images at once.

detectron2 copies the regions to the host and rasterises polygons there, region by region, with pycocotools. Here the
same algorithm (``rleFrPoly`` of pycocotools' maskApi.c) runs for all regions together, to the bit.

Shape suffixes: M regions, V edges of an object's polygons, S side of a target in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import BitMasks, Instances, PolygonMasks
from detectron2.utils.events import get_event_storage
from torch import Tensor

from lgd.detectors.batched import to_device
from lgd.detectors.dense_losses import logs_now

MAX_CROSSINGS = 2**22
"""Edges times columns of cells that are looked at together: 32 MiB for each tensor."""

UPSAMPLING = 5
"""Grid points to a cell that pycocotools rounds a polygon's corners to."""


class RegionMasks:
    """The mask of each region of an image: one of its objects', without a copy.

    masks: of the objects, PolygonMasks or BitMasks. index: (M,), the object of each region.
    """

    def __init__(self, masks: PolygonMasks | BitMasks, index: Tensor) -> None:
        self.masks, self.index = masks, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: Any) -> RegionMasks:
        return RegionMasks(self.masks, self.index[item])

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """(M, S, S), bool: what the masks' own method returns."""
        return crop([self], [boxes], mask_size)


def crop(masks: Sequence[RegionMasks], boxes: Sequence[Tensor], side: int) -> Tensor:
    """The part of its mask in each region's box, resized to ``side`` cells, of all images: (M, S, S), bool."""
    found = [torch.zeros(0, side, side, dtype=torch.bool, device=x.device) for x in boxes]
    drawn = [i for i, x in enumerate(masks) if isinstance(x.masks, PolygonMasks)]
    if drawn:
        edges = tabulate([masks[i].masks.polygons for i in drawn])
        firsts = np.cumsum([0, *(len(masks[i].masks) for i in drawn)]).tolist()
        index_M = torch.cat([masks[i].index + first for i, first in zip(drawn, firsts, strict=False)])
        targets = rasterise(edges, index_M, torch.cat([boxes[i] for i in drawn]), side)
        for i, part in zip(drawn, targets.split([len(masks[i]) for i in drawn]), strict=True):
            found[i] = part
    align = ROIAlign((side, side), 1.0, 0, aligned=True)
    for i, each in enumerate(masks):
        if isinstance(each.masks, BitMasks):
            maps = each.masks.tensor.to(boxes[i].device, torch.float32)[:, None]
            found[i] = align(maps, torch.cat([each.index[:, None].to(boxes[i]), boxes[i]], dim=1))[:, 0] >= 0.5
    return torch.cat(found)


class Edges(NamedTuple):
    """The edges of the polygons of objects, padded with edges of no length."""

    corners: Tensor
    """(objects, V, 2, 2), float64, pixels: x and y of the start and of the end."""
    polygon: Tensor
    """(objects, V), int64: which of its object's polygons an edge belongs to."""
    polygons: int
    """The largest number of polygons of an object."""


def tabulate(polygons: Sequence[Sequence[Sequence[np.ndarray]]]) -> Edges:
    """The edges of all images' objects. polygons: of each image the objects, of each object its polygons, x y x y"""
    objects = [x for image in polygons for x in image]
    longest = max([1, *(sum(len(p) // 2 for p in x) for x in objects)])
    corners = np.zeros((len(objects), longest, 2, 2))
    polygon = np.zeros((len(objects), longest), dtype=np.int64)
    for i, each in enumerate(objects):
        first = 0
        for number, flat in enumerate(each):
            points = flat.reshape(-1, 2)
            rows = slice(first, first + len(points))
            corners[i, rows, 0], corners[i, rows, 1] = points, np.roll(points, -1, axis=0)
            polygon[i, rows] = number
            first += len(points)
    return Edges(torch.from_numpy(corners), torch.from_numpy(polygon), max([1, *(len(x) for x in objects)]))


def rasterise(edges: Edges, index_M: Tensor, boxes_M4: Tensor, side: int) -> Tensor:
    """The polygons of object ``index`` within each box: (M, S, S), bool, as ``PolygonMasks.crop_and_resize``."""
    corners, polygon = (to_device(x, boxes_M4.device) for x in (edges.corners, edges.polygon))
    regions = max(1, MAX_CROSSINGS // (corners.shape[1] * side))
    found = [boxes_M4.new_zeros((0, side, side), dtype=torch.bool)]
    for index, boxes in zip(index_M.split(regions), boxes_M4.split(regions), strict=True):
        columns, rows = crossings(_rescale(corners[index], boxes, side), side)
        # Where the boundary crosses a column an odd number of times above a cell, the cell is inside; one more row for
        # crossings below the last cell, one more column for edges that do not cross a column.
        cells = (len(index), edges.polygons, side + 1, side + 1)
        place = (polygon[index][..., None] * (side + 1) + columns) * (side + 1) + rows
        toggles = torch.zeros(len(index), cells[1] * cells[2] * cells[3], dtype=torch.int32, device=boxes.device)
        toggles.scatter_add_(1, place.flatten(1), torch.ones_like(place.flatten(1), dtype=torch.int32))
        inside = toggles.view(cells)[:, :, :side].cumsum(-1, dtype=torch.int32)[..., :side] % 2 == 1
        found.append(inside.any(1).transpose(1, 2))
    return torch.cat(found)


def _rescale(corners_MV22: Tensor, boxes_M4: Tensor, side: int) -> Tensor:
    """Corners in cells of the box, by the arithmetic of detectron2 with NumPy 2: the ratio is rounded to float32."""
    sides_M2 = boxes_M4[:, 2:] - boxes_M4[:, :2]
    # A number divided by a tensor would be its reciprocal times the number, rounded twice.
    ratio_M2 = (torch.full_like(sides_M2, side) / sides_M2).double()
    ratio_M2 = torch.where(sides_M2 < 0.1, side / 0.1, ratio_M2)
    return (corners_MV22 - boxes_M4[:, None, None, :2].double()) * ratio_M2[:, None, None]


def crossings(corners_MV22: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where edges cross the middle of columns of cells: column and first row below it, both (M, V, S), int64.

    Column ``side``, row 0 stand for no crossing. Corners are rounded to a grid of ``UPSAMPLING`` points to a cell, on
    which an edge is a line of points, one for each step along its longer side; it crosses between two of them.
    """
    points = (UPSAMPLING * corners_MV22 + 0.5).trunc()
    start, end = points[..., 0, :], points[..., 1, :]
    length = (end - start).abs()
    is_steep = length[..., :1] < length[..., 1:]
    backwards = torch.where(is_steep, start[..., 1:] > end[..., 1:], start[..., :1] > end[..., :1])
    start, end = torch.where(backwards, end, start), torch.where(backwards, start, end)
    (x, y), (x_end, y_end) = start.split(1, -1), end.split(1, -1)
    slope = torch.where(is_steep, (x_end - x) / (y_end - y), (y_end - y) / (x_end - x))
    column_S = torch.arange(side, device=points.device)
    # A crossing lies between this grid point and the next one.
    left_S = (UPSAMPLING * column_S + UPSAMPLING // 2).double()
    crosses = (torch.minimum(x, x_end) <= left_S) & (left_S + 1 <= torch.maximum(x, x_end))
    step = left_S - x
    y_flat = torch.minimum((y + slope * step + 0.5).trunc(), (y + slope * (step + 1) + 0.5).trunc())
    # The first step on the other side: the quotient's integer part, or one or two steps more.
    step = ((left_S + 0.5 - x) / slope).floor()
    for _ in range(2):
        is_right = (x + slope * step + 0.5).trunc() > left_S
        step = step + (is_right != (slope > 0))
    row = torch.where(is_steep, y + step - 1, y_flat)
    row = ((row + 0.5) / UPSAMPLING - 0.5).clamp(0, side).ceil()
    return torch.where(crosses, column_S, side), torch.where(crosses, row, 0).long()


def forward_mask(heads: Any, features: dict[str, Tensor], instances: list[Instances]) -> Any:
    """The mask branch of detectron2's StandardROIHeads; it knows how many of the regions drawn are foreground."""
    counts = getattr(instances, "foreground", None)
    if not heads.training or heads.mask_pooler is None:
        return type(heads)._forward_mask(heads, features, instances)
    if counts is None:
        foreground, _ = select_foreground_proposals(instances, heads.num_classes)
    else:
        foreground = [x[:count] for x, count in zip(instances, counts, strict=True)]
    levels = [features[name] for name in heads.mask_in_features]
    return heads.mask_head(heads.mask_pooler(levels, [x.proposal_boxes for x in foreground]), foreground)


def mask_head_forward(head: Any, x: Tensor, instances: list[Instances]) -> Any:
    """The mask loss of detectron2's MaskRCNNConvUpsampleHead in training."""
    with_objects = [i for i in instances if len(i)]
    if not head.training or head.vis_period > 0 or not with_objects:
        return type(head).forward(head, x, instances)
    logits = head.layers(x)
    boxes = [i.proposal_boxes.tensor for i in with_objects]
    targets = crop([i.gt_masks for i in with_objects], boxes, logits.shape[-1])
    classes = torch.cat([i.gt_classes for i in with_objects])
    if logits.shape[1] == 1:
        classes = torch.zeros_like(classes)
    logits = logits.gather(1, classes[:, None, None, None].expand(-1, 1, *logits.shape[2:]))[:, 0]
    _log_accuracy(logits, targets)
    loss = F.binary_cross_entropy_with_logits(logits, targets.float())
    return {"loss_mask": loss * head.loss_weight}


def _log_accuracy(logits: Tensor, targets: Tensor) -> None:
    """Log how often a cell is right, as detectron2 does; on a GPU in some steps only."""
    if not logs_now(targets):
        return
    wrong = (logits > 0) != targets
    counts = torch.stack([targets.sum(), (wrong & ~targets).sum(), (wrong & targets).sum()])
    inside, false_positive, false_negative = counts.tolist()
    storage, cells = get_event_storage(), targets.numel()
    storage.put_scalar("mask_rcnn/accuracy", 1 - (false_positive + false_negative) / max(cells, 1))
    storage.put_scalar("mask_rcnn/false_positive", false_positive / max(cells - inside, 1))
    storage.put_scalar("mask_rcnn/false_negative", false_negative / max(inside, 1))
