"""Batches of training loaders and how to compare them."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from lgd.data.dataset import DataSet
from lgd.data.loaders import train_loader
from lgd.data.shapes import ShapesSpec

SPEC = ShapesSpec(train=30, val=40, size=64, seed=0)
Batch = list[dict[str, Any]]


def batches(dataset: DataSet, count: int, **options: Any) -> list[Batch]:
    chosen: dict[str, Any] = {
        "batch_size": 4,
        "min_sizes": (64, 80, 96),
        "max_size": 128,
        "flip": True,
        "masks": False,
        "seed": 1,
        "workers": 0,
        **options,
    }
    return list(itertools.islice(train_loader(dataset, **chosen), count))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert [sample["image_id"] for sample in one] == [sample["image_id"] for sample in other]
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
            assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)


def differ(left: list[Batch], right: list[Batch]) -> bool:
    return any(
        a["image"].shape != b["image"].shape or not torch.equal(a["image"], b["image"])
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )
