"""PKD (Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
NeurIPS 2022): its loss (docs/method.md, "PKD").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.errors import InputError
from lgd.methods.align import level_channels

EPS = 1e-6
"""Added to a channel's deviation."""


class PearsonDistance(nn.Module):
    """Half the mean squared error between standardised features, summed over the finest ``levels`` levels.

    It is 1 - r for the Pearson correlation r of the channels (section 3), but for the factor (n - 1) / n of n values.
    It has no parameters.
    """

    trains_on_detached_features = False
    reads_boxes = False

    def __init__(self, weight: float = 1.0, levels: int = 4) -> None:
        super().__init__()
        self.weight = weight
        self.levels = levels

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        instances: Sequence[Any] = (),
        image_size: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """The loss (scalar, float32); ``teacher_features`` get no gradient, the objects are not used."""
        names = list(student)[: self.levels]
        return self.weight * torch.stack([pkd_loss(student[x], teacher_features[x].detach()) for x in names]).sum()


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """MSE / 2 of the standardised maps (B, C, h, w) of one level: scalar, float32."""
    return F.mse_loss(standardize(student), standardize(teacher)) / 2


def standardize(x: Tensor) -> Tensor:
    """(x - mean) / (deviation + 1e-6) of (B, C, h, w), in float32: each channel over all images and cells of the batch.

    The deviation is the sample's (n - 1), and 0 where a channel has a single value. With several workers each
    standardises over its own images.
    """
    images, channels, height, width = x.shape
    # In the released code's order: in a channel without variance every digit of the mean counts, over 1e-6.
    values = x.float().transpose(0, 1).reshape(channels, -1)
    mean = values.mean(dim=1, keepdim=True)
    deviation = values.std(dim=1, keepdim=True, correction=min(1, values.shape[1] - 1))
    standardized = (values - mean) / (deviation + EPS)
    return standardized.view(channels, images, height, width).transpose(0, 1)


def check_channels(student: nn.Module, teacher: nn.Module) -> None:
    """Raise InputError where the teacher has other channels than the student: PKD pairs them one to one."""
    channels = level_channels(student, teacher).values()
    if any(own != teachers for own, teachers in channels):
        own, teachers = (sorted({x[i] for x in channels}) for i in (0, 1))
        raise InputError(
            f"PKD needs a teacher with the student's channels {own}, not {teachers}: set detector.channels"
        )
