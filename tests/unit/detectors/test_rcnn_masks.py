"""Mask R-CNN's targets of a whole batch against detectron2's, region by region, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor

from benchmarks.wait_counter import WaitCounter
from lgd.detectors.rcnn_masks import RegionMasks, crop

HEIGHT, WIDTH = 90, 120


def _polygons(random: np.random.Generator, objects: int) -> list[list[np.ndarray]]:
    """Of each object one to three polygons: round ones, ones that cross themselves, some on whole pixels, some with a
    corner twice; some are far outside of the image."""
    found = []
    for _ in range(objects):
        parts = []
        for _ in range(random.integers(1, 4)):
            corners = int(random.integers(3, 12))
            points = random.uniform(-20, [WIDTH + 20, HEIGHT + 20], (corners, 2))
            if random.random() < 0.5:
                angles = np.sort(random.uniform(0, 2 * np.pi, corners))
                points = points[:1] + random.uniform(3, 40) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            if random.random() < 0.3:
                points = np.round(points)
            if random.random() < 0.3:
                points = np.concatenate([points, points[-1:]])
            parts.append(points.reshape(-1))
        found.append(parts)
    return found


def _boxes(random: np.random.Generator, regions: int) -> Tensor:
    """Some as large as the image, some on whole pixels, some thinner than a tenth of a pixel."""
    corner = random.uniform(0, [WIDTH - 1, HEIGHT - 1], (regions, 2))
    sides = random.uniform(0, 1, (regions, 2)) ** 2 * (np.array([WIDTH, HEIGHT]) - corner)
    sides[:2] = [[0.05, 30], [20, 0.01]]
    boxes = np.concatenate([corner, corner + sides], axis=1)
    boxes[2:6] = np.round(boxes[2:6])
    boxes[6] = [0, 0, WIDTH, HEIGHT]
    return torch.from_numpy(boxes).float()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", [28, 14])
def test_polygons_are_those_of_detectron2(seed: int, side: int) -> None:
    random = np.random.default_rng(seed)
    masks, boxes, expected = [], [], []
    for objects, regions in ((5, 60), (1, 30), (3, 0)):
        polygons = PolygonMasks(_polygons(random, objects))
        index = torch.from_numpy(random.integers(0, objects, regions))
        masks.append(RegionMasks(polygons, index))
        boxes.append(_boxes(random, regions) if regions else torch.zeros(0, 4))
        if regions:
            expected.append(polygons[index].crop_and_resize(boxes[-1], side))
    found = crop(masks, boxes, side)
    assert 0.05 < float(found.float().mean()) < 0.95
    assert torch.equal(found, torch.cat(expected))


def test_bitmaps_are_those_of_detectron2_and_may_stand_beside_polygons() -> None:
    random = np.random.default_rng(0)
    # As an image without regions, or with an object without a polygon.
    bitmaps = BitMasks(torch.from_numpy(random.random((4, HEIGHT, WIDTH)) < 0.5))
    polygons = PolygonMasks([*_polygons(random, 1), []])
    masks: list[Any] = [bitmaps, polygons, BitMasks(torch.ones(2, 30, 50))]
    indices = [torch.from_numpy(random.integers(0, len(x), 20)) for x in masks]
    boxes = [_boxes(random, 20) for _ in masks]
    expected = [m[i].crop_and_resize(b, 28) for m, i, b in zip(masks, indices, boxes, strict=True)]
    ours = [RegionMasks(m, i) for m, i in zip(masks, indices, strict=True)]
    with WaitCounter() as counter:
        found = crop(ours, boxes, 28)
    assert not counter.waits
    assert torch.equal(found, torch.cat(expected))
    some = torch.tensor([3, 3, 0])
    assert torch.equal(ours[0][some].crop_and_resize(boxes[0][some], 28), expected[0][some])


def test_many_corners_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    polygons = PolygonMasks(_polygons(random, 6))
    index, boxes = torch.arange(6).repeat(5), _boxes(random, 30)
    whole = crop([RegionMasks(polygons, index)], [boxes], 28)
    monkeypatch.setattr("lgd.detectors.rcnn_masks.MAX_CROSSINGS", 4000)
    assert torch.equal(crop([RegionMasks(polygons, index)], [boxes], 28), whole)
