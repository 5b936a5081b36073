"""FGFI (Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019): near the objects, a
student imitates the features of a trained detector (docs/method.md, "FGFI").

A distance for :class:`lgd.methods.distiller.Distiller`, with a :class:`lgd.methods.frozen_teacher.FrozenTeacher`.

Shape suffixes: B images, N object slots of an image (padding included), A anchors of a cell, L levels, h rows and w
columns of a level.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torchvision
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.anchor_utils import AnchorGenerator

from lgd.distributed.ranks import mean_over_workers
from lgd.methods.fgfi.levels import LevelRule
from lgd.methods.init import init_he
from lgd.methods.parts import channels_of, levels_of

log = logging.getLogger(__name__)

POINT_ANCHOR = 8
"""Side, in strides, of the square that replaces the anchor of a location in a detector without anchors."""


class ImitationDistance(nn.Module):
    """Half the squared difference to the teacher's features, averaged over the cells near objects (sections 3.1, 3.2).

    The student's features go through one 3x3 convolution (then a ReLU, with ``relu``, as in the released code) to the
    teacher's channels; it is shared by the levels and dropped after training.

    student, teacher: the detectors, read for their channels and the student's anchors, not kept. InputError where the
    channels differ between levels. levels: see LevelRule; of a student without anchors (see :func:`anchors_of`) each
    cell has a square of 8 strides, and ``best`` is ``fpn``. threshold: of an object's largest overlap with a level's
    anchors. weight: of the loss.
    """

    trains_on_detached_features = False
    """In the first iterations (400 in the released code) there is no imitation at all."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        levels: LevelRule = "best",
        threshold: float = 0.5,
        weight: float = 0.01,
        relu: bool = True,
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d(
            channels_of(student, "FGFI", "student"), channels_of(teacher, "FGFI", "teacher"), 3, padding=1
        )
        self.adapter = nn.Sequential(convolution, nn.ReLU()) if relu else nn.Sequential(convolution)
        init_he(self)
        self.anchors = nn.ModuleDict(anchors_of(student))
        if levels == "best" and _generator(student) is None:
            levels = "fpn"
            log.warning("FGFI: %s has no anchors, so an object's level is that of FPN's rule", type(student).__name__)
        self.levels: LevelRule = levels
        self.threshold = threshold
        self.weight = weight

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        instances: Sequence[Any],
        image_size: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Return, in float32, weight / (2 * cells) * the sum over masked cells and channels of all levels.

        ``cells`` are those in the masks of all the batch's images and levels (their mean over the workers of a
        distributed training); without any, the loss and its gradients are zero. ``teacher_features`` get no gradient.
        """
        masks = self.masks(student, instances)
        totals = []
        for name, mask in masks.items():
            difference = self.adapter(student[name]).float() - teacher_features[name].detach().float()
            # Over all cells: indexing the masked ones would synchronise to count them.
            totals.append((difference.square().sum(dim=1) * mask).sum())
        cells = torch.stack([x.sum() for x in masks.values()]).sum()
        return self.weight / 2 * torch.stack(totals).sum() / mean_over_workers(cells.float())

    def masks(self, features: Mapping[str, Tensor], instances: Sequence[Any]) -> dict[str, Tensor]:
        """The cells to imitate on each level that has anchors, (B, h, w) bool, for detectron2 ``instances``."""
        # A padding slot is a box without area, which overlaps nothing.
        boxes = pad_sequence([x.gt_boxes.tensor for x in instances], batch_first=True)
        anchors = {name: cast(Anchors, x) for name, x in self.anchors.items()}
        sizes = {name: (features[name].shape[-2], features[name].shape[-1]) for name in anchors}
        return imitation_masks(boxes, anchors, sizes, levels=self.levels, threshold=self.threshold)


class Anchors(nn.Module):
    """The anchors of one level: the same A boxes around a point in each cell.

    cells: (A, 4) corners in pixels, relative to the point. stride: pixels per cell. offset: of the point from the upper
    left corner of its cell, in cells.
    """

    cells: Tensor

    def __init__(self, cells: Tensor, stride: int, offset: float) -> None:
        super().__init__()
        self.register_buffer("cells", cells.detach().clone(), persistent=False)
        self.stride = stride
        self.offset = offset

    def areas(self) -> Tensor:
        """(A,) square pixels."""
        return (self.cells[:, 2:] - self.cells[:, :2]).prod(dim=1)

    def intersection_sides(self, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Sides, in pixels, of the intersection of boxes (B, N, 4) with the anchors of a level of (h, w) cells.

        Its height depends on the anchor's row only and its width on the column: (B, N, A, h) and (B, N, A, w).
        """
        sides = []
        for axis, count in ((1, size[0]), (0, size[1])):
            points = (torch.arange(count, device=boxes.device) + self.offset) * self.stride
            low, high = (self.cells[:, i, None] + points for i in (axis, axis + 2))
            start = torch.maximum(boxes[..., axis, None, None], low)
            end = torch.minimum(boxes[..., axis + 2, None, None], high)
            sides.append((end - start).clamp(min=0))
        return sides[0], sides[1]


def anchors_of(detector: nn.Module) -> dict[str, Anchors]:
    """The anchors of each level that a detector's head, or its RPN, reads; by level name, finest first.

    They come from detectron2's or torchvision's generator: ``detector.anchor_generator``, or the one of its
    ``proposal_generator`` or ``rpn``. FCOS and subclasses without anchors of their own have points, which the generator
    gives as squares of one stride. Each is replaced by a square of 8 strides, with which ATSS (CVPR 2020, section 3)
    finds no difference between anchor and point. A detector without such a generator has those squares on all levels.
    """
    generator: Any = _generator(detector)
    if generator is None:
        return {name: _square(x.stride) for name, x in levels_of(detector).items()}
    if isinstance(generator, AnchorGenerator):
        return _torchvision_anchors(detector, generator)
    owner: Any = _owner(detector)
    # What dense detectors and the RPN call the levels they read.
    names = owner.head_in_features if hasattr(owner, "head_in_features") else owner.in_features
    found = {}
    for name, stride, cells in zip(names, generator.strides, generator.cell_anchors, strict=True):
        point = cells.new_tensor([[-stride, -stride, stride, stride]]) / 2
        if isinstance(detector, FCOS) and torch.equal(cells, point):
            cells = POINT_ANCHOR * point
        found[name] = Anchors(cells, stride, generator.offset)
    return found


def _owner(detector: nn.Module) -> Any:
    """What has the generator of anchors: detectron2's RPN, torchvision's, or the detector itself."""
    return getattr(detector, "proposal_generator", None) or getattr(detector, "rpn", None) or detector


def _generator(detector: nn.Module) -> DefaultAnchorGenerator | AnchorGenerator | None:
    """The generator of upright anchors."""
    found = getattr(_owner(detector), "anchor_generator", None)
    return found if isinstance(found, (DefaultAnchorGenerator, AnchorGenerator)) else None


def _torchvision_anchors(detector: nn.Module, generator: AnchorGenerator) -> dict[str, Anchors]:
    """Those of torchvision's generator, which puts them on the upper left corners of the cells."""
    found = {}
    for (name, level), cells in zip(levels_of(detector).items(), generator.cell_anchors, strict=True):
        is_point = isinstance(detector, torchvision.models.detection.FCOS) and len(cells) == 1
        found[name] = _square(level.stride, offset=0.0) if is_point else Anchors(cells, level.stride, 0.0)
    return found


def _square(stride: int, offset: float = 0.5) -> Anchors:
    """One square of 8 strides in each cell."""
    half = POINT_ANCHOR * stride / 2
    return Anchors(torch.tensor([[-half, -half, half, half]]), stride, offset)


@torch.no_grad()
def imitation_masks(
    boxes: Tensor,
    anchors: Mapping[str, Anchors],
    sizes: Mapping[str, tuple[int, int]],
    *,
    levels: LevelRule = "best",
    threshold: float = 0.5,
) -> dict[str, Tensor]:
    """The cells near objects, (B, h, w) bool on each level (section 3.1).

    A cell is one where an anchor's IoU with an object is above ``threshold`` (0 or more, below 1) times the largest one
    that the object has on the level. boxes: (B, N, 4) corners in pixels; one without area marks nothing. sizes: (h, w)
    of each level.
    """
    boxes = boxes.float()
    area_BN1 = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1, keepdim=True)
    sides = {name: x.intersection_sides(boxes, sizes[name]) for name, x in anchors.items()}
    areas_BNA = {name: area_BN1 + x.areas() for name, x in anchors.items()}
    peaks = []
    for name, (height_BNAh, width_BNAw) in sides.items():
        # The IoU with an anchor of a given shape is largest where both sides of the intersection are.
        largest_BNA = height_BNAh.amax(dim=-1) * width_BNAw.amax(dim=-1)
        peaks.append((largest_BNA / (areas_BNA[name] - largest_BNA)).amax(dim=-1))
    peaks_LBN = torch.stack(peaks)
    assigned_LBN = _assigned_levels(levels, peaks_LBN, boxes, [x.stride for x in anchors.values()])
    masks = {}
    for i, (name, (height_BNAh, width_BNAw)) in enumerate(sides.items()):
        # Equals intersection / (areas - intersection) > bound, without a division per cell and object.
        bound_BN1 = (threshold * peaks_LBN[i])[..., None]
        least_BNA = areas_BNA[name] * bound_BN1 / (1 + bound_BN1)
        least_BNA = least_BNA.masked_fill(~assigned_LBN[i][..., None], math.inf)
        mask = torch.zeros(len(boxes), *sizes[name], dtype=torch.bool, device=boxes.device)
        # One anchor shape at a time: all of them at all cells for all objects would take gigabytes.
        for a in range(least_BNA.shape[2]):
            intersection_BNhw = height_BNAh[:, :, a, :, None] * width_BNAw[:, :, a, None, :]
            mask |= (intersection_BNhw > least_BNA[:, :, a, None, None]).any(dim=1)
        masks[name] = mask
    return masks


def _assigned_levels(rule: LevelRule, peaks: Tensor, boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """(L, B, N) bool: whether an object is assigned to a level; ``peaks`` (L, B, N) are its largest IoUs there."""
    if rule == "all":
        return torch.ones_like(peaks, dtype=torch.bool)
    if rule == "best":
        chosen = peaks.argmax(dim=0)
    else:
        levels = [int(math.log2(x)) for x in strides]
        found = assign_boxes_to_levels([Boxes(boxes.flatten(0, 1))], levels[0], levels[-1], 224, 4) + levels[0]
        # The nearest that is there, where strides leave one out. Counted, since an index would come from the CPU.
        above = torch.stack([found > (low + high) / 2 for low, high in pairwise(levels)] or [found < 0])
        chosen = above.sum(dim=0).view(boxes.shape[:2])
    return chosen == torch.arange(len(peaks), device=peaks.device)[:, None, None]
