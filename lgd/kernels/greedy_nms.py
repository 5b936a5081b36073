"""Greedy non-maximum suppression of many groups of boxes at once, without a wait for the device.

torchvision's returns as many boxes as it keeps, of one group, a number that the host has to wait for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def greedy_nms(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Which boxes are kept, (G, N) bool: none that a kept one before it overlaps by more than ``threshold`` (IoU).

    boxes: (G, N, 4), float32, of each group by score, the highest first. valid: (G, N), bool: False for padding.
    """
    kept = valid.clone()
    groups, number = valid.shape
    block = triton.next_power_of_2(number)
    warps = 4 if block <= 4096 else 16
    _nms_kernel[(groups,)](boxes.contiguous(), kept, number, threshold, BLOCK=block, num_warps=warps)
    return kept


@triton.jit
def _nms_kernel(boxes, kept, number, threshold, BLOCK: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * number
    place = tl.arange(0, BLOCK)
    inside = place < number
    corners = boxes + (group + place) * 4
    x1 = tl.load(corners, mask=inside, other=0.0)
    y1 = tl.load(corners + 1, mask=inside, other=0.0)
    x2 = tl.load(corners + 2, mask=inside, other=0.0)
    y2 = tl.load(corners + 3, mask=inside, other=0.0)
    area = (x2 - x1) * (y2 - y1)
    alive = tl.load(kept + group + place, mask=inside, other=0).to(tl.int32)
    for i in range(number):
        if tl.sum(tl.where(place == i, alive, 0), axis=0) > 0:
            one = boxes + (group + i) * 4
            left, top, right, bottom = tl.load(one), tl.load(one + 1), tl.load(one + 2), tl.load(one + 3)
            width = tl.maximum(tl.minimum(x2, right) - tl.maximum(x1, left), 0.0)
            height = tl.maximum(tl.minimum(y2, bottom) - tl.maximum(y1, top), 0.0)
            shared = width * height
            overlap = shared / (area + (right - left) * (bottom - top) - shared)
            alive = tl.where((place > i) & (overlap > threshold), 0, alive)
    tl.store(kept + group + place, alive != 0, mask=inside)
