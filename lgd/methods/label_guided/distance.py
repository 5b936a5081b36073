"""Distillation adapter and loss (the LGD paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lgd.config.components import Start
from lgd.methods.init import init_he
from lgd.methods.norms import instance_norm_distance


class DistillationDistance(nn.Module):
    """Mean squared error between instance-normalised features, the student's after an adapter.

    The adapter (3x3 conv, ReLU, 3x3 conv, ReLU, 3x3 conv) is shared by the levels and dropped after training. start:
    its first weights; ``reference`` is torch's default.
    """

    trains_on_detached_features = True
    """The adapter trains before the loss reaches the student (docs/method.md, "Schedule")."""

    def __init__(self, channels: int, start: Start = "informed") -> None:
        super().__init__()
        self.adapter = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        if start == "informed":
            init_he(self)

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        instances: Sequence[Any] = (),
        image_size: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Return the mean over all elements of all levels (scalar, float32); the labels are not used.

        ``teacher_features`` get no gradient.
        """
        total, elements = torch.zeros((), device=next(iter(student.values())).device), 0
        for name, features in student.items():
            total = total + instance_norm_distance(self.adapter(features), teacher_features[name])
            elements += features.numel()
        return total / elements
