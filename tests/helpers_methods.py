"""Detectors for the tests of methods that imitate a frozen one."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn

from lgd.detectors import build_detector
from tests.helpers import CLASSES, tiny_settings


def seeded_detector(name: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return build_detector(tiny_settings(name).model_copy(update=changes), CLASSES)


class _BackboneParts(nn.Module):
    def __init__(self, channels: int, strides: dict[str, int]) -> None:
        super().__init__()
        self.shapes = {name: ShapeSpec(channels=channels, stride=stride) for name, stride in strides.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.shapes


class DenseParts(nn.Module):
    """What FGFI reads of a dense detector: one square anchor a cell, its side twice the level's stride."""

    def __init__(self, channels: int, strides: dict[str, int]) -> None:
        super().__init__()
        self.backbone = _BackboneParts(channels, strides)
        self.head_in_features = list(strides)
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[2.0 * x] for x in strides.values()],
            aspect_ratios=[1.0],
            strides=list(strides.values()),
            offset=0.5,
        )


def drawn(mask: Tensor) -> list[str]:
    """One image's mask, a string of # and . for each row."""
    return ["".join("#" if x else "." for x in row) for row in mask.tolist()]
