"""Small real detectors and batches that several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from lgd.detectors import build_detector
from lgd.experiment import Backbone, Detector

CLASSES = 5

TINY_DETECTOR = Detector(
    backbone=Backbone(name="resnet18", width=8, norm="BN", weights="none", freeze_at=0),
    channels=16,
    head_convs=1,
    anchor_scale=2.0,
)


def instances(counts: Sequence[int], size: tuple[int, int], seed: int = 0, classes: int = CLASSES) -> list[Instances]:
    """One Instances an image with that many random boxes inside (H, W)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    made = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        extent = (0.1 + 0.3 * torch.rand(count, 2, generator=generator)) * torch.tensor([width, height])
        found = Instances(size)
        found.gt_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
        found.gt_classes = torch.randint(classes, (count,), generator=generator)
        made.append(found)
    return made


def batch(counts: Sequence[int], size: tuple[int, int] = (64, 96), seed: int = 0) -> list[dict[str, Any]]:
    """A batch as detectron2's loaders yield it."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [
        {"image": torch.rand(3, *size, generator=generator) * 255, "instances": x, "height": size[0], "width": size[1]}
        for x in instances(counts, size, seed)
    ]


def tiny_detector(seed: int = 0, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(seed)
    return build_detector(TINY_DETECTOR, classes)
