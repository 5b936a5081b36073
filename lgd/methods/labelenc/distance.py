"""LabelEnc's distance, the same in both stages (LabelEnc, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lgd.methods.init import init_he
from lgd.methods.norms import group_norm, square_sum


class WholeMapDistance(nn.Module):
    """Mean squared error between features that are normalised over each whole map, the student's after an adapter.

    The adapter (3x3 conv, ReLU, 3x3 conv, ReLU, 3x3 conv) is shared by the levels and dropped after training.
    """

    trains_on_detached_features = False
    frozen_without_distillation = True
    """Its parameters stay as they are while the student does not learn from it, weight decay included, as in the
    released code (lgd/methods/phases.py)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.adapter = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        init_he(self)

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        instances: Sequence[Any] = (),
        image_size: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """The mean over all elements of all levels (scalar, float32); ``teacher_features`` get no gradient."""
        total, elements = next(iter(student.values())).new_zeros(()).float(), 0
        for name, features in student.items():
            encoded = teacher_features[name].detach()
            difference = _normed(self.adapter(features)) - _normed(encoded)
            total = total + square_sum(difference)
            elements += difference.numel()
        return total / elements


def _normed(x: Tensor) -> Tensor:
    # As instance_norm does for LGD's distance: float16 gets a float32 copy, bfloat16 none.
    return group_norm(x if x.dtype is torch.bfloat16 else x.float())
