"""The labels of a batch, padded to one tensor, with their descriptors and their regions on a pyramid level.

Shape suffixes: B images, N object slots of an image (padding included), K classes, L levels, P = h * w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

SLOT_MULTIPLE = 8
"""On a GPU the slots of an image come in multiples of this: fewer different shapes let memory and compiled code be
reused."""

PLACEHOLDER_BOX = (0.0, 0.0, 1.0, 1.0)
"""Box, in pixels, of the one object that an image without objects is given."""

NO_CLASS = -1
"""Class of the context object and of the placeholder: the one-hot part of their descriptor is all zero."""


@dataclass(frozen=True)
class Objects:
    """The objects of a batch."""

    boxes: Tensor
    """(B, N, 4) float, corners in pixels, not yet clamped."""
    classes: Tensor
    """(B, N) long."""
    valid: Tensor
    """(B, N) bool, False in padding slots."""
    image_size: tuple[int, int]
    """(H, W) of the padded batch image in pixels."""
    context: bool
    """Whether the last slot of every image is its context object."""

    @classmethod
    def from_instances(cls, instances: Sequence[Any], image_size: tuple[int, int], *, context: bool) -> Objects:
        """Pad detectron2's ``Instances`` (``gt_boxes``, ``gt_classes``) of a batch, on the device they are on."""
        return cls.from_lists(
            [x.gt_boxes.tensor for x in instances],
            [x.gt_classes for x in instances],
            image_size,
            context=context,
        )

    @classmethod
    def from_lists(
        cls,
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
        image_size: tuple[int, int],
        *,
        context: bool,
        slots: int = 0,
    ) -> Objects:
        """Pad one (N_b, 4) and one (N_b,) tensor per image, to a multiple of ``slots`` (0: 8 on a GPU, else 1).

        An image without objects gets a placeholder: in the context object's slot where there is one, otherwise in its
        first slot.
        """
        padded = pad_sequence(list(boxes), batch_first=True).float()
        labels = pad_sequence(list(classes), batch_first=True, padding_value=NO_CLASS)
        # From host-side sizes: building the mask on the device would cost a copy and a synchronisation.
        valid = pad_sequence(
            [torch.ones_like(x, dtype=torch.bool) for x in classes], batch_first=True, padding_value=False
        )
        missing = -padded.shape[1] % (slots or (SLOT_MULTIPLE if padded.is_cuda else 1))
        if missing:
            padded, labels, valid = (
                F.pad(padded, (0, 0, 0, missing)),
                F.pad(labels, (0, missing), value=NO_CLASS),
                F.pad(valid, (0, missing)),
            )
        empty = ~valid.any(dim=1, keepdim=True)
        height, width = image_size
        placeholder = padded.new_zeros(1, 1, 4)
        placeholder[..., 2:] = PLACEHOLDER_BOX[2]
        if context:
            whole = padded.new_zeros(1, 1, 4)
            whole[..., 2].fill_(width)
            whole[..., 3].fill_(height)
            padded = torch.cat([padded, torch.where(empty[..., None], placeholder, whole)], dim=1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), NO_CLASS)], dim=1)
            valid = torch.cat([valid, torch.ones_like(empty)], dim=1)
        elif min(len(x) for x in classes) == 0:
            if padded.shape[1] == 0:
                padded = padded.new_zeros(len(padded), 1, 4)
                labels = labels.new_full((len(labels), 1), NO_CLASS)
                valid = torch.zeros_like(labels, dtype=torch.bool)
            first = torch.arange(padded.shape[1], device=padded.device)[None] == 0
            padded = torch.where((empty & first)[..., None], placeholder, padded)
            valid = valid | (empty & first)
        return cls(padded, labels, valid, image_size, context)

    def clamped(self) -> Tensor:
        """(B, N, 4) boxes inside the padded image: x in [0, W - 1], y in [0, H - 1]."""
        height, width = self.image_size
        x = self.boxes[..., 0::2].clamp(0, width - 1)
        y = self.boxes[..., 1::2].clamp(0, height - 1)
        return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)

    def descriptors(self, num_classes: int) -> Tensor:
        """(B, N, 4 + K) label descriptors in [-1, 1]: clamped corners over image size, one-hot class."""
        height, width = self.image_size
        clamped = self.clamped()
        corners = torch.cat([clamped[..., i : i + 1] / (width if i % 2 == 0 else height) for i in range(4)], dim=-1)
        # A comparison, not one_hot: that has no negative class and may synchronise to check the range.
        one_hot = self.classes[..., None] == torch.arange(num_classes, device=self.classes.device)
        return torch.cat([corners, one_hot.to(corners.dtype)], dim=-1) * 2 - 1

    def regions(self, level_size: tuple[int, int]) -> Tensor:
        """(B, N, P) bool: the cells of a level of (h, w) cells that each object's box covers.

        Cell (i, j) is covered when |i - yc| <= bh / 2 and |j - xc| <= bw / 2 in the level's own cells, i and j
        being plain integers. Padding slots cover nothing.
        """
        (height, width), (h, w) = self.image_size, level_size
        clamped = self.clamped()
        x1, x2 = (clamped[..., 0::2] * (w / width)).unbind(-1)
        y1, y2 = (clamped[..., 1::2] * (h / height)).unbind(-1)
        rows = torch.arange(h, device=clamped.device, dtype=clamped.dtype)
        columns = torch.arange(w, device=clamped.device, dtype=clamped.dtype)
        in_y = (rows - ((y1 + y2) / 2)[..., None]).abs() <= 0.5 * (y2 - y1)[..., None]
        in_x = (columns - ((x1 + x2) / 2)[..., None]).abs() <= 0.5 * (x2 - x1)[..., None]
        inside = in_y[..., :, None] & in_x[..., None, :] & self.valid[..., None, None]
        return inside.flatten(2)


def pad_objects(boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, N, 4), classes (B, N) and which slots are objects (B, N) bool, from one (N_b, 4), (N_b,) an image.

    N is 1 where no image has an object. Padding slots have a box of zeros and the class -1.
    """
    padded = pad_sequence(list(boxes), batch_first=True).float()
    labels = pad_sequence(list(classes), batch_first=True, padding_value=NO_CLASS)
    # From host-side sizes: building the mask on the device would cost a copy and a synchronisation.
    valid = pad_sequence([torch.ones_like(x, dtype=torch.bool) for x in classes], batch_first=True)
    if padded.shape[1] == 0:
        padded = F.pad(padded, (0, 0, 0, 1))
        labels, valid = F.pad(labels, (0, 1), value=NO_CLASS), F.pad(valid, (0, 1))
    return padded, labels, valid
