"""The map of labels that LabelEnc's encoder reads (LabelEnc, section 3).

Shape suffixes: B images, T objects of all images together, K classes, (H, W) the padded batch image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOWEST = 0.5
"""Values below it become 0: outside the object's box, as it happens."""


@torch.no_grad()
def label_map(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    num_classes: int,
    image_size: tuple[int, int],
    *,
    dimming: Tensor | None = None,
) -> Tensor:
    """(B, K, H, W), float32: on its class's channel each object is brightest, 1, in the middle and 0.5 at its border.

    An object has the value v = 1 - max(|x - cx| / w, |y - cy| / h) at the pixel (x, y), x and y whole numbers, 0 where
    that is below 0.5; where several of one class meet, the largest counts. boxes, classes: one (N_b, 4) tensor of
    corners in pixels and one (N_b,) tensor an image. A box without area has the value 1 at most at one line or point.
    dimming: (T,) factors of the objects' values, image after image.
    """
    height, width = image_size
    corners_T4, classes_T = torch.cat(list(boxes)).float(), torch.cat(list(classes))
    # Sizes are known on the host: which image an object is in must not be asked of the device.
    counts = torch.tensor([len(x) for x in classes])
    images_T = torch.arange(len(classes)).repeat_interleave(counts, output_size=len(classes_T))
    images_T = images_T.to(classes_T.device, non_blocking=True)
    across_TW = _distance(corners_T4[:, 0], corners_T4[:, 2], width)
    along_TH = _distance(corners_T4[:, 1], corners_T4[:, 3], height)
    # In place: at the image's size each of these takes a map an object.
    value_THW = torch.maximum(along_TH[:, :, None], across_TW[:, None, :]).neg_().add_(1)
    value_THW.masked_fill_(value_THW < LOWEST, 0)
    if dimming is not None:
        value_THW *= dimming[:, None, None]
    flat = value_THW.new_zeros(len(boxes) * num_classes, height * width)
    channel_T = images_T * num_classes + classes_T
    flat.scatter_reduce_(0, channel_T[:, None].expand(-1, height * width), value_THW.flatten(1), "amax")
    return flat.view(len(boxes), num_classes, height, width)


def _distance(low: Tensor, high: Tensor, pixels: int) -> Tensor:
    """Distance of each pixel 0 ... to the middle of intervals (T,), divided by their length: (T, pixels)."""
    points = torch.arange(pixels, device=low.device)
    distance = (points - ((low + high) / 2)[:, None]).abs()
    # 0 / 0, at the middle of an interval without length, is 0: the middle.
    return (distance / (high - low)[:, None]).nan_to_num(nan=0.0, posinf=float("inf"))
