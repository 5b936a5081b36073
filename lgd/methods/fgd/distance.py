"""FGD (Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022): its loss (docs/method.md,
"FGD").

Shape suffixes: B images, N object slots of an image (padding included), C channels, h rows and w columns of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.methods.align import align
from lgd.methods.fgd.weights import FGDWeights
from lgd.methods.norms import without_autocast
from lgd.methods.objects import pad_objects


class FocalGlobal(nn.Module):
    """The layers of one level: a 1x1 convolution where the channels differ, and a GcBlock for each detector.

    GcBlock is Cao et al.'s (GCNet, ICCVW 2019): a map plus a transform of its attention-weighted mean. Its last
    convolution starts at zero, so that at first a map passes through unchanged.
    """

    def __init__(self, channels: int, teacher_channels: int, weights: FGDWeights | None = None) -> None:
        super().__init__()
        self.align = align(channels, teacher_channels)
        self.conv_mask_s, self.channel_add_conv_s = _context_layers(teacher_channels)
        self.conv_mask_t, self.channel_add_conv_t = _context_layers(teacher_channels)
        self.weights = weights or FGDWeights()

    def forward(self, student: Tensor, teacher: Tensor, foreground: Tensor) -> Tensor:
        """The weighted sum of the four parts, each a sum over the batch divided by B (scalar, float32).

        student, teacher: (B, C, h, w). foreground: (B, h, w), of :func:`foreground_mask`. ``teacher`` gets no gradient.
        """
        if self.align is not None:
            student = self.align(student)
        # Also under autocast: sums and statistics need float32.
        student, teacher = student.float(), teacher.detach().float()
        spatial_t, channel_t = attention(teacher, self.weights.temperature)
        spatial_s, channel_s = attention(student, self.weights.temperature)
        weights = self.weights
        focus = weights.alpha * foreground + weights.beta * background_mask(foreground)
        squares_Bhw = ((student - teacher).square() * channel_t[..., None, None]).sum(dim=1)
        features = (squares_Bhw * spatial_t * focus).sum()
        attention_loss = (channel_s - channel_t).abs().sum() + (spatial_s - spatial_t).abs().sum()
        related_s = _with_context(student, self.conv_mask_s, self.channel_add_conv_s)
        related_t = _with_context(teacher, self.conv_mask_t, self.channel_add_conv_t)
        relation = F.mse_loss(related_s, related_t, reduction="sum")
        return (features + weights.gamma * attention_loss + weights.lambda_ * relation) / len(student)


class FocalGlobalDistance(nn.Module):
    """The loss of :class:`FocalGlobal`, summed over the levels, each with layers of its own.

    channels: of student and teacher on each level, by name.
    """

    trains_on_detached_features = False

    def __init__(self, channels: Mapping[str, tuple[int, int]], weights: FGDWeights | None = None) -> None:
        super().__init__()
        self.levels = nn.ModuleDict({name: FocalGlobal(*pair, weights) for name, pair in channels.items()})

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        instances: Sequence[Any],
        image_size: tuple[int, int],
    ) -> Tensor:
        """The loss (scalar, float32); ``teacher_features`` get no gradient."""
        boxes, _, valid = pad_objects([x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances])
        losses = []
        for name, features in student.items():
            size = (int(features.shape[2]), int(features.shape[3]))
            foreground = foreground_mask(boxes, valid, size, image_size)
            losses.append(self.levels[name](features, teacher_features[name], foreground))
        return torch.stack(losses).sum()


def attention(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where and in which channels a map (B, C, h, w) in float32 is active: (B, h, w) and (B, C).

    Softmax of the mean absolute values over T, times the number of cells and of channels (equations 4 to 7).
    """
    magnitude = features.abs()
    spatial = F.softmax(magnitude.mean(dim=1).flatten(1) / temperature, dim=1) * features[0, 0].numel()
    channel = F.softmax(magnitude.mean(dim=(2, 3)) / temperature, dim=1) * features.shape[1]
    return spatial.view(features.shape[0], *features.shape[2:]), channel


@torch.no_grad()
def foreground_mask(boxes: Tensor, valid: Tensor, level_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """What each cell of a level of (h, w) cells weighs as part of the smallest object there, (B, h, w); 0 outside all.

    An object covers the cells floor(x1) to ceil(x2) and floor(y1) to ceil(y2) of its box in the level's cells, both
    included; each weighs 1 / (rows * columns). What lies outside the map counts among rows and columns, as in the
    released code. boxes: (B, N, 4) corners in pixels; valid: (B, N), False in padding slots; image_size: (H, W) of the
    padded batch image.
    """
    (h, w), (height, width) = level_size, image_size
    boxes = boxes.float()
    # Divided first, as in the released code: the other order rounds some corners to another cell.
    left, right = (boxes[..., 0] / width * w).floor(), (boxes[..., 2] / width * w).ceil()
    top, bottom = (boxes[..., 1] / height * h).floor(), (boxes[..., 3] / height * h).ceil()
    value_BN = 1 / (bottom + 1 - top) / (right + 1 - left)
    rows, columns = (torch.arange(x, device=boxes.device) for x in (h, w))
    in_y = (rows >= top[..., None]) & (rows <= bottom[..., None]) & valid[..., None]
    in_x = (columns >= left[..., None]) & (columns <= right[..., None])
    inside_BNhw = in_y[..., :, None] & in_x[..., None, :]
    return torch.where(inside_BNhw, value_BN[..., None, None], 0.0).amax(dim=1)


def background_mask(foreground: Tensor) -> Tensor:
    """1 over the number of an image's cells outside all objects there, 0 in objects; (B, h, w) both."""
    outside = (foreground == 0).to(foreground.dtype)
    return outside / outside.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def _context_layers(channels: int) -> tuple[nn.Conv2d, nn.Sequential]:
    """GcBlock's attention over the cells, and its transform of their mean."""
    hidden = max(1, channels // 2)
    mask, last = nn.Conv2d(channels, 1, 1), nn.Conv2d(hidden, channels, 1)
    nn.init.kaiming_normal_(mask.weight, nonlinearity="relu")
    for parameter in (cast(Tensor, mask.bias), last.weight, cast(Tensor, last.bias)):
        nn.init.zeros_(parameter)
    add = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), last)
    return mask, add


def _with_context(features: Tensor, mask: nn.Conv2d, add: nn.Sequential) -> Tensor:
    """GcBlock of (B, C, h, w), in float32."""
    with without_autocast(features):
        weights = F.softmax(mask(features).flatten(2), dim=2)
        context = torch.einsum("bcp,bp->bc", features.flatten(2), weights[:, 0])[..., None, None]
        return features + add(context)
