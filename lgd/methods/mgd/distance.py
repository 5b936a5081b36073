"""MGD (Yang et al., "Masked Generative Distillation", ECCV 2022): its loss (docs/method.md, "MGD")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.methods.align import align


class MaskedGeneration(nn.Module):
    """The layers of one level: a 1x1 convolution where the channels differ, and the block that generates (section 3).

    alpha: factor of the loss. ratio: part of the cells that is hidden.
    """

    def __init__(self, channels: int, teacher_channels: int, *, alpha: float = 2e-5, ratio: float = 0.65) -> None:
        super().__init__()
        self.align = align(channels, teacher_channels)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )
        self.alpha = alpha
        self.ratio = ratio

    def forward(self, student: Tensor, teacher: Tensor, uniform: Tensor | None = None) -> Tensor:
        """alpha / B * the sum of squared differences between what is generated and ``teacher`` (scalar, float32).

        student, teacher: (B, C, h, w). uniform: (B, 1, h, w) numbers in [0, 1); a cell is hidden where they are above
        1 - ratio. By default they are drawn from torch's global generator of the device, whose state is in the
        checkpoint: a resumed training hides the same cells.
        """
        if uniform is None:
            uniform = torch.rand(len(student), 1, *student.shape[2:], device=student.device)
        aligned = student if self.align is None else self.align(student)
        generated = self.generation(aligned * (uniform <= 1 - self.ratio))
        return F.mse_loss(generated.float(), teacher.float(), reduction="sum") * (self.alpha / len(student))


class MaskedGenerativeDistance(nn.Module):
    """The loss of :class:`MaskedGeneration`, summed over the levels, each with layers of its own.

    channels: of student and teacher on each level, by name.
    """

    trains_on_detached_features = False
    reads_boxes = False

    def __init__(self, channels: Mapping[str, tuple[int, int]], *, alpha: float = 2e-5, ratio: float = 0.65) -> None:
        super().__init__()
        self.levels = nn.ModuleDict(
            {name: MaskedGeneration(*pair, alpha=alpha, ratio=ratio) for name, pair in channels.items()}
        )

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        instances: Sequence[Any] = (),
        image_size: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """The loss (scalar, float32); ``teacher_features`` get no gradient, the objects are not used."""
        losses = [self.levels[name](x, teacher_features[name].detach()) for name, x in student.items()]
        return torch.stack(losses).sum()
