"""Synthetic batches as the project's loaders yield them, and frozen norms that fit a network of random weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.timer_spec import SyntheticImages
from lgd.methods.distiller import Batch


def object_counts(images: int, mean: float) -> list[int]:
    """Number of boxes of each image: quantiles of an exponential distribution, at least 1.

    COCO's counts are close to it: their standard deviation is as large as their mean.
    """
    return [max(1, round(-mean * math.log(1 - (i + 0.5) / images))) for i in range(images)]


def make_batches(images: SyntheticImages, batch: int, count: int, *, masks: bool = False, seed: int = 0) -> list[Batch]:
    """``count`` batches of noise on the host: uint8 images (3, H, W) with boxes inside.

    masks: add each object's box as a polygon.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = object_counts(batch * count, images.objects)
    order = torch.randperm(len(counts), generator=generator).tolist()
    made = [_image(images.size_of(n % batch), images, counts[i], masks, generator) for n, i in enumerate(order)]
    return [made[i : i + batch] for i in range(0, len(made), batch)]


def _image(
    size: tuple[int, int], images: SyntheticImages, objects: int, masks: bool, generator: torch.Generator
) -> dict[str, Any]:
    height, width = size
    # Log-uniform sides, from a twentieth to four fifths of the image's.
    sides = 0.05 * 16 ** torch.rand(objects, 2, generator=generator)
    corner = torch.rand(objects, 2, generator=generator) * (1 - sides)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + sides], dim=1) * torch.tensor([width, height] * 2))
    instances.gt_classes = torch.randint(images.classes, (objects,), generator=generator)
    if masks:
        instances.gt_masks = PolygonMasks(
            [[box[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for box in instances.gt_boxes.tensor]
        )
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "instances": instances, "height": height, "width": width}


@torch.no_grad()
def calibrate_frozen_norms(model: nn.Module, batch: Batch) -> None:
    """Set the statistics of every FrozenBatchNorm2d of ``model`` to those of its input for ``batch``.

    With random weights and untouched statistics, activations grow from block to block until proposals overflow.
    """

    def set_statistics(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.copy_(inputs[0].float().mean(dim=(0, 2, 3)))
            module.running_var.copy_(inputs[0].float().var(dim=(0, 2, 3)))

    # A global hook, since FGFI's frozen teacher is no registered submodule; blocks with kernels then call their norms.
    handle = register_module_forward_pre_hook(set_statistics)
    try:
        with EventStorage():
            model.train()
            model(batch)
    finally:
        handle.remove()
