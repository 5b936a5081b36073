"""RoIAlign (He et al., ICCV 2017) of regions of several pyramid levels, from channels_last maps.

torchvision's kernels want maps whose channels lie apart, so that neighbouring threads add to distant places in the
backward pass, and regions sorted by level, whose numbers the host has to wait for. Here a program computes one cell of
one region with all its channels, which lie next to each other.

Maps are (B, C, h, w); regions (M, 5), float32: the image's number and a box in pixels; S x S cells of each are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


def pool(maps: Sequence[Tensor], regions: Tensor, levels: Tensor, scales: Sequence[float], size: int) -> Tensor:
    """Pooled regions (M, S, S, C), of the maps' type, as torchvision's with ``aligned`` and ``sampling_ratio=0``.

    levels: (M,) long, the map that each region is pooled from, zero where there is none. scales: cells of each map to a
    pixel.
    """
    channels = maps[0].shape[1]
    pooled = maps[0].new_zeros(len(regions), size, size, channels)
    block = triton.next_power_of_2(channels)
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        _pool_kernel[(len(regions), size * size)](
            x, regions, levels, pooled, level, scale, x.shape[2], x.shape[3], C=channels, SIZE=size, BLOCK_C=block
        )
    return pooled


def pool_backward(
    gradient: Tensor, shapes: Sequence[Sequence[int]], regions: Tensor, levels: Tensor, scales: Sequence[float]
) -> list[Tensor]:
    """Gradients of the maps, of these ``shapes``, float32, from that of the pooled regions (M, S, S, C).

    Sums of many programs: their order, and so the rounding, is not the same each time, as in torchvision.
    """
    size, channels = gradient.shape[1], gradient.shape[3]
    found = []
    for level, (shape, scale) in enumerate(zip(shapes, scales, strict=True)):
        images, _, height, width = shape
        dx = torch.zeros(images, height, width, channels, dtype=torch.float32, device=gradient.device)
        _pool_backward_kernel[(len(regions), size * size)](
            gradient, regions, levels, dx, level, scale, height, width,
            C=channels, SIZE=size, BLOCK_C=triton.next_power_of_2(channels),
        )  # fmt: skip
        found.append(dx.permute(0, 3, 1, 2))
    return found


@triton.jit
def _cell(regions, scale, SIZE: tl.constexpr):
    """Of the program's region and cell: the image, the cell's corner and sides, and its samples each way."""
    region = regions + tl.program_id(0) * 5
    image = tl.load(region).to(tl.int64)
    left, top = tl.load(region + 1) * scale - 0.5, tl.load(region + 2) * scale - 0.5
    width = (tl.load(region + 3) * scale - 0.5) - left
    height = (tl.load(region + 4) * scale - 0.5) - top
    cell_width, cell_height = width / SIZE, height / SIZE
    x0 = left + (tl.program_id(1) % SIZE) * cell_width
    y0 = top + (tl.program_id(1) // SIZE) * cell_height
    columns, rows = tl.ceil(cell_width).to(tl.int32), tl.ceil(cell_height).to(tl.int32)
    return image, x0, y0, cell_width, cell_height, columns, rows


@triton.jit
def _between(at, cells):
    """The two cells that a place lies between along one side, the share of the second, and 1 where it is outside."""
    outside = ((at < -1.0) | (at > cells)).to(tl.int32)
    at = tl.maximum(at, 0.0)
    low = at.to(tl.int32)
    last = low >= cells - 1
    low = tl.where(last, cells - 1, low)
    high = tl.where(last, cells - 1, low + 1)
    share = tl.where(last, 0.0, at - low.to(tl.float32))
    return low, high, share, outside


@triton.jit
def _corners(x, image, above, below, left, right, down, across, W, H, C: tl.constexpr):
    """Of the four cells around a sample: where their channels begin in ``x``, and their weights."""
    upper, lower = x + (image * H + above) * W * C, x + (image * H + below) * W * C
    places = upper + left * C, upper + right * C, lower + left * C, lower + right * C
    weights = (1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across
    return places, weights


@triton.jit
def _pool_kernel(
    x, regions, levels, pooled, level, scale, H, W, C: tl.constexpr, SIZE: tl.constexpr, BLOCK_C: tl.constexpr
):
    if tl.load(levels + tl.program_id(0)) == level:
        image, x0, y0, cell_width, cell_height, columns, rows = _cell(regions, scale, SIZE)
        channel = tl.arange(0, BLOCK_C)
        inside = channel < C
        total = tl.zeros([BLOCK_C], dtype=tl.float32)
        for row in range(rows):
            above, below, down, outside_y = _between(y0 + (row + 0.5) * cell_height / rows, H)
            for column in range(columns):
                left, right, across, outside_x = _between(x0 + (column + 0.5) * cell_width / columns, W)
                if outside_x + outside_y == 0:
                    at, weights = _corners(x, image, above, below, left, right, down, across, W, H, C)
                    for i in tl.static_range(4):
                        total += weights[i] * tl.load(at[i] + channel, mask=inside, other=0.0).to(tl.float32)
        mean = total / tl.maximum(rows * columns, 1)
        place = (tl.program_id(0).to(tl.int64) * SIZE * SIZE + tl.program_id(1)) * C
        tl.store(pooled + place + channel, mean.to(pooled.dtype.element_ty), mask=inside)


@triton.jit
def _pool_backward_kernel(
    gradient, regions, levels, dx, level, scale, H, W, C: tl.constexpr, SIZE: tl.constexpr, BLOCK_C: tl.constexpr
):
    if tl.load(levels + tl.program_id(0)) == level:
        image, x0, y0, cell_width, cell_height, columns, rows = _cell(regions, scale, SIZE)
        channel = tl.arange(0, BLOCK_C)
        inside = channel < C
        place = (tl.program_id(0).to(tl.int64) * SIZE * SIZE + tl.program_id(1)) * C
        g = tl.load(gradient + place + channel, mask=inside, other=0.0).to(tl.float32)
        g = g / tl.maximum(rows * columns, 1)
        for row in range(rows):
            above, below, down, outside_y = _between(y0 + (row + 0.5) * cell_height / rows, H)
            for column in range(columns):
                left, right, across, outside_x = _between(x0 + (column + 0.5) * cell_width / columns, W)
                if outside_x + outside_y == 0:
                    at, weights = _corners(dx, image, above, below, left, right, down, across, W, H, C)
                    for i in tl.static_range(4):
                        tl.atomic_add(at[i] + channel, weights[i] * g, mask=inside, sem="relaxed")
