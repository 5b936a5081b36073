"""CWD (Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021): its loss (docs/method.md,
"CWD").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.methods.align import align


class ChannelWiseDistance(nn.Module):
    """KL divergence between the channels' distributions over the cells (section 3.2), summed over the levels.

    channels: of student and teacher on each level, by name. Where they differ, the student's features go through a 1x1
    convolution of the level.
    """

    trains_on_detached_features = False
    reads_boxes = False

    def __init__(
        self, channels: Mapping[str, tuple[int, int]], *, weight: float = 10.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.align = nn.ModuleDict({name: align(*pair) or nn.Identity() for name, pair in channels.items()})
        self.weight = weight
        self.temperature = temperature

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        instances: Sequence[Any] = (),
        image_size: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """The loss (scalar, float32); ``teacher_features`` get no gradient, the objects are not used."""
        losses = [
            cwd_loss(self.align[name](x), teacher_features[name].detach(), self.temperature)
            for name, x in student.items()
        ]
        return self.weight * torch.stack(losses).sum()


def cwd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 / (B C) * the sum of KL(teacher || student) over channels and images of one level.

    student, teacher: (B, C, h, w). Returns a scalar, in float32.
    """
    images, channels = student.shape[:2]
    log_p, log_q = (F.log_softmax(x.float().flatten(2) / temperature, dim=2) for x in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / (images * channels))
