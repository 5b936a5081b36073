"""How long a training will take on this machine's CPU, from a step that is measured on small images."""

from __future__ import annotations

import time
from typing import Any

import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from lgd.config.experiment import Experiment
from lgd.detectors.model_layout import predicts_masks
from lgd.logs import quiet_libraries
from lgd.methods.distiller import student_of
from lgd.training.build import build_model
from lgd.training.device import process_settings

SIDES = (128, 160)
"""Height and width of the measured images, pixels: enough for every level of the pyramid."""

ASPECT = 4 / 3
"""Longer side of a training image to its shorter one; COCO's mean is close to it."""

CLASSES, OBJECTS = 80, 7
"""COCO's classes, and its mean number of objects in an image."""


def pixels_per_image(experiment: Experiment) -> float:
    """About the mean size of a training image after resizing."""
    data = experiment.data
    short = [min(side, data.max_size / ASPECT) for side in data.min_sizes]
    return sum(side * side * ASPECT for side in short) / len(short)


def training_pixels(experiment: Experiment) -> float:
    """Pixels that the training computes on: all images of all steps."""
    return pixels_per_image(experiment) * experiment.schedule.batch * experiment.schedule.steps


def cpu_seconds(experiment: Experiment) -> float:
    """About how many seconds the training's steps take on this machine's CPU.

    A forward and backward pass over one small synthetic image is timed twice, the shorter time scaled by the number of
    pixels. Evaluations and a frozen teacher's training are not included.
    """
    experiment = experiment.override({"device": "cpu"})
    with process_settings(experiment), quiet_libraries(), EventStorage(0):
        model = build_model(experiment, CLASSES, pretrained=False).train()
        # The first one allocates memory and chooses kernels.
        seconds = min(_timed_pass(model, predicts_masks(student_of(model))) for _ in range(2))
    return seconds / (SIDES[0] * SIDES[1]) * training_pixels(experiment)


def _timed_pass(model: Any, masks: bool) -> float:
    batch = [_image(masks)]
    begun = time.perf_counter()
    sum(model(batch).values()).backward()
    return time.perf_counter() - begun


def _image(masks: bool) -> dict[str, Any]:
    """An image with OBJECTS boxes in detectron2's training format."""
    height, width = SIDES
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(OBJECTS, 2, generator=generator) * 0.6
    corners = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(OBJECTS, 2, generator=generator)], dim=1)
    boxes = corners * torch.tensor([width, height, width, height])
    objects = Instances(SIDES)
    objects.gt_boxes = Boxes(boxes)
    objects.gt_classes = torch.randint(CLASSES, (OBJECTS,), generator=generator)
    if masks:
        objects.gt_masks = PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].numpy()] for box in boxes])
    image = torch.rand(3, height, width, generator=generator) * 255
    return {"image": image, "instances": objects, "height": height, "width": width}
