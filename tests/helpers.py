"""Small real detectors and batches that several tests share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances, PolygonMasks

from lgd.config.experiment import Backbone, Detector, Experiment
from lgd.config.presets import NANO
from lgd.detectors import build_detector
from lgd.results.cost_meter import read_heartbeat
from lgd.training import checkpoint

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
        {
            "image": torch.rand(3, *size, generator=generator) * 255,
            "instances": x,
            "height": size[0],
            "width": size[1],
        }
        for x in instances(counts, size, seed)
    ]


def tiny_detector(seed: int = 0, classes: int = CLASSES) -> Any:
    # Any, since detectron2's types say nothing of a detector's parts.
    torch.manual_seed(seed)
    return build_detector(TINY_DETECTOR, classes)


DETECTORS = ("retinanet", "fcos", "faster_rcnn", "mask_rcnn", "atss", "poto")


def tiny_settings(name: str) -> Detector:
    """The named detector at a width at which a step takes a fraction of a second."""
    return Detector.model_validate(
        {
            "name": name,
            "backbone": Backbone(name="resnet18", width=8, norm="BN"),
            "channels": 32,
            "head_convs": 1,
            "fc_dim": 32,
            "anchor_scale": 2.0,
        }
    )


def with_masks(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same batch with each object's box as its mask, a polygon; no masks where there are no objects."""
    for x in data:
        found = x["instances"]
        if len(found):
            found.gt_masks = PolygonMasks([[b[[0, 1, 2, 1, 2, 3, 0, 3]].numpy()] for b in found.gt_boxes.tensor])
    return data


def detector_batch(name: str, counts: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """A batch as the named detector needs it in training."""
    data = batch(counts, seed=seed)
    return with_masks(data) if name == "mask_rcnn" else data


@contextmanager
def one_thread() -> Iterator[None]:
    """Run small tensors on one thread: on a busy machine several spend most of their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quick_experiment(**changes: Any) -> Experiment:
    """A few real steps on a handful of small images: seconds on one core. Keys with ``__`` for dots."""
    small = {
        "schedule.steps": 6,
        "schedule.warmup_steps": 2,
        "schedule.batch": 2,
        "schedule.lr": 0.05,
        "data.shapes_train": 12,
        "data.shapes_val": 6,
        "data.shapes_side": 64,
        "data.min_sizes": [64],
        "data.max_size": 64,
        "data.test_size": 64,
        "detector.backbone.width": 8,
        "detector.channels": 16,
        "detector.head_convs": 1,
        "threads": 1,
    }
    return NANO.override({**small, **{key.replace("__", "."): value for key, value in changes.items()}})


def unsaved(directory: Path) -> float:
    """Device-seconds that a running training has left word of and that its newest checkpoint does not hold; 0 before.

    A kill loses what is measured here: a test that kills waits for it to be above 0.
    """
    found = sorted((directory / checkpoint.DIRECTORY).glob("step-*.pth"))
    if not found:
        return 0.0
    try:
        saved = torch.load(found[-1], weights_only=True)["state"]["meter"]["device_seconds"]
    except FileNotFoundError:  # a newer one took its place
        return 0.0
    return read_heartbeat(directory).device_seconds - sum(saved.values())


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Raises AssertionError when it is not true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing within {seconds} s"
        time.sleep(0.05)
