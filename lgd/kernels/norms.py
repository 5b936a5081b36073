"""Group and instance norm without learnt parameters, and LGD's distance, with statistics in float32.

Maps are (B, C, h, w), channels_last; P = h * w cells. A program computes ``ROWS`` cells of one image with all their
channels. Statistics are those of the image (group norm with one group) or of each of its channels (instance norm):
W = 1 or C of them an image.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from lgd.kernels.elements import relu

ELEMENTS = 8192
"""Elements of a map that one program holds, about."""

CHUNK = 4096
"""Elements of the parts' statistics that one program merges at once, about."""


def normalize(x: Tensor, eps: float, *, group: bool, relu: bool = False) -> Tensor:
    """(x - mean) / sqrt(variance + eps), of ``x``'s type; negative values zero with ``relu``. group: one group."""
    found: Tensor = _Normalize.apply(x, eps, group, relu)
    return found


def normalized_square_distance(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Sum of the squared differences of two instance-normed maps, scalar float32; ``y`` gets no gradient."""
    found: Tensor = _Distance.apply(x, y.detach(), eps)
    return found


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, group: bool, with_relu: bool) -> Tensor:
        mean, scale = _statistics(x, eps, group)
        y = torch.empty_like(x)
        grid, sizes = _launch(x)
        _apply_kernel[grid](x, mean, scale, y, **sizes, GROUP=group, RELU=with_relu)
        ctx.save_for_backward(x, mean, scale)
        ctx.group, ctx.relu = group, with_relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, mean, scale = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        grid, sizes = _launch(x)
        width = mean.shape[1]
        sums = torch.empty(2, len(x), grid[1], width, dtype=torch.float32, device=x.device)
        _slopes_kernel[grid](g, x, mean, scale, sums, len(x), **sizes, GROUP=ctx.group, RELU=ctx.relu)
        means = sums.sum(2) / (x[0].numel() // width)
        dx = torch.empty_like(x)
        _gradient_kernel[grid](g, x, mean, scale, means, dx, len(x), **sizes, GROUP=ctx.group, RELU=ctx.relu)
        return dx, None, None, None


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
        x_statistics, y_statistics = _statistics(x, eps, False), _statistics(y, eps, False)
        grid, sizes = _launch(x)
        # Of the differences: their squares, themselves, and their products with the normed x.
        sums = torch.empty(3, len(x), grid[1], x.shape[1], dtype=torch.float32, device=x.device)
        _difference_kernel[grid](x, y, *x_statistics, *y_statistics, sums, len(x), **sizes)
        sums = sums.sum(2)
        ctx.save_for_backward(x, y, *x_statistics, *y_statistics, sums[1:] / x[0, 0].numel())
        return sums[0].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, y, x_mean, x_scale, y_mean, y_scale, means = ctx.saved_tensors
        grid, sizes = _launch(x)
        dx = torch.empty_like(x)
        _distance_gradient_kernel[grid](x, y, x_mean, x_scale, y_mean, y_scale, means, grads[0], dx, len(x), **sizes)
        return dx, None, None


def _launch(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid (B, parts of an image) and sizes of a launch over a map."""
    images, channels, height, width = x.shape
    block = triton.next_power_of_2(channels)
    rows = max(1, ELEMENTS // block)
    cells = height * width
    return (images, triton.cdiv(cells, rows)), {"P": cells, "C": channels, "ROWS": rows, "BLOCK_C": block}


def _statistics(x: Tensor, eps: float, group: bool) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each image (B, 1) or channel (B, C): of parts first, then merged."""
    grid, sizes = _launch(x)
    images, parts = grid
    width = 1 if group else x.shape[1]
    of_parts = torch.empty(2, images, parts, width, dtype=torch.float32, device=x.device)
    _part_statistics_kernel[grid](x, of_parts, images, **sizes, GROUP=group)
    mean, scale = torch.empty(2, images, width, dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(width), 32)
    chunk = min(triton.next_power_of_2(parts), max(1, CHUNK // block))
    _merge_kernel[(images, triton.cdiv(width, block))](
        of_parts, mean, scale, images, parts, width, eps, 1 if not group else x.shape[1],
        P=sizes["P"], ROWS=sizes["ROWS"], BLOCK=block, CHUNK=chunk,
    )  # fmt: skip
    return mean, scale


@triton.jit
def _tile(P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets (ROWS, BLOCK_C) of a program's cells, which of them are inside, and the channels (1, BLOCK_C)."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK_C)[None, :]
    inside = (row < P) & (channel < C)
    offsets = (tl.program_id(0).to(tl.int64) * P + row) * C + channel
    return offsets, inside, channel


@triton.jit
def _of_image(pointer, channel, C: tl.constexpr, GROUP: tl.constexpr):
    """A statistic of the program's image: one number, or one a channel (1, BLOCK_C)."""
    if GROUP:
        return tl.load(pointer + tl.program_id(0))
    else:
        return tl.load(pointer + tl.program_id(0) * C + channel, mask=channel < C, other=0.0)


@triton.jit
def _normed(x, mean, scale, P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, GROUP: tl.constexpr):
    """Of a program's cells: offsets, which are inside, channels, and the normed values, zero outside."""
    offsets, inside, channel = _tile(P, C, ROWS, BLOCK_C)
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    values = (values - _of_image(mean, channel, C, GROUP)) * _of_image(scale, channel, C, GROUP)
    return offsets, inside, channel, tl.where(inside, values, 0.0)


@triton.jit
def _store_sum(values, pointer, channel, C: tl.constexpr, GROUP: tl.constexpr):
    """Write a program's sum over its cells, and over the channels with GROUP, into (B, parts, W)."""
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    over_cells = tl.sum(values, axis=0)
    if GROUP:
        tl.store(pointer + part, tl.sum(over_cells, axis=0))
    else:
        tl.store(pointer + part * C + channel, over_cells[None, :], mask=channel < C)


@triton.jit
def _part_statistics_kernel(
    x, of_parts, images, P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, GROUP: tl.constexpr
):
    """Mean of a program's cells and the sum of squared distances from it, into (2, B, parts, W)."""
    offsets, inside, channel = _tile(P, C, ROWS, BLOCK_C)
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    cells = tl.minimum(ROWS, P - tl.program_id(1) * ROWS).to(tl.float32)
    total = tl.sum(values, axis=0)
    if GROUP:
        mean = tl.sum(total, axis=0) / (cells * C)
        from_mean = tl.where(inside, values - mean, 0.0)
    else:
        mean = total / cells
        from_mean = tl.where(inside, values - mean[None, :], 0.0)
    width: tl.constexpr = 1 if GROUP else C
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    if GROUP:
        tl.store(of_parts + part, mean)
    else:
        tl.store(of_parts + part * C + channel, mean[None, :], mask=channel < C)
    squares = of_parts + images * tl.num_programs(1) * width
    _store_sum(from_mean * from_mean, squares, channel, C, GROUP)


@triton.jit
def _merge_kernel(
    of_parts, mean, scale, images, parts, width, eps, each,
    P, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Merge the parts' statistics of one image (Chan, Golub and LeVeque, 1979). each: numbers that a cell has."""
    image = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    means = of_parts + image * parts * width
    squares = of_parts + (images + image) * parts * width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, parts, CHUNK):
        part = first + tl.arange(0, CHUNK)[:, None]
        inside = (part < parts) & (column < width)
        cells = tl.minimum(ROWS, P - part * ROWS).to(tl.float32)
        total += tl.sum(tl.load(means + part * width + column, mask=inside, other=0.0) * cells, axis=0)
    centre = total / P
    spread = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, parts, CHUNK):
        part = first + tl.arange(0, CHUNK)[:, None]
        inside = (part < parts) & (column < width)
        cells = tl.minimum(ROWS, P - part * ROWS).to(tl.float32) * each
        away = tl.load(means + part * width + column, mask=inside, other=0.0) - centre[None, :]
        within = tl.load(squares + part * width + column, mask=inside, other=0.0)
        spread += tl.sum(tl.where(inside, within + cells * away * away, 0.0), axis=0)
    places = image * width + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK) < width
    tl.store(mean + places, centre, mask=known)
    tl.store(scale + places, 1 / tl.sqrt(spread / (P * each) + eps), mask=known)


@triton.jit
def _apply_kernel(
    x, mean, scale, y, P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    offsets, inside, _, values = _normed(x, mean, scale, P, C, ROWS, BLOCK_C, GROUP)
    if RELU:
        values = relu(values)
    tl.store(y + offsets, values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_and_normed(
    g, x, mean, scale, P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """The upstream gradient before the ReLU, and the normed values, zero outside."""
    offsets, inside, channel, values = _normed(x, mean, scale, P, C, ROWS, BLOCK_C, GROUP)
    gradient = tl.load(g + offsets, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        gradient = tl.where(values > 0, gradient, 0.0)
    return offsets, inside, channel, gradient, values


@triton.jit
def _slopes_kernel(
    g, x, mean, scale, sums, images, P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient and of its product with the normed values, into (2, B, parts, W)."""
    _, _, channel, gradient, values = _gradient_and_normed(g, x, mean, scale, P, C, ROWS, BLOCK_C, GROUP, RELU)
    width: tl.constexpr = 1 if GROUP else C
    _store_sum(gradient, sums, channel, C, GROUP)
    _store_sum(gradient * values, sums + images * tl.num_programs(1) * width, channel, C, GROUP)


@triton.jit
def _gradient_kernel(
    g, x, mean, scale, means, dx, images, P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
    GROUP: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """scale * (g - mean(g) - y * mean(g * y)), with y the normed values."""
    offsets, inside, channel, gradient, values = _gradient_and_normed(
        g, x, mean, scale, P, C, ROWS, BLOCK_C, GROUP, RELU
    )
    width: tl.constexpr = 1 if GROUP else C
    offset = _of_image(means, channel, C, GROUP)
    slope = _of_image(means + images * width, channel, C, GROUP)
    found = (gradient - offset - values * slope) * _of_image(scale, channel, C, GROUP)
    tl.store(dx + offsets, found.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _normed_pair(x, y, x_mean, x_scale, y_mean, y_scale, P, C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """The normed x and its difference from the normed y, zero outside."""
    offsets, inside, channel, a = _normed(x, x_mean, x_scale, P, C, ROWS, BLOCK_C, False)
    _, _, _, b = _normed(y, y_mean, y_scale, P, C, ROWS, BLOCK_C, False)
    return offsets, inside, channel, a, a - b


@triton.jit
def _difference_kernel(
    x, y, x_mean, x_scale, y_mean, y_scale, sums, images, P,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    _, _, channel, a, z = _normed_pair(x, y, x_mean, x_scale, y_mean, y_scale, P, C, ROWS, BLOCK_C)
    stride = images * tl.num_programs(1) * C
    _store_sum(z * z, sums, channel, C, False)
    _store_sum(z, sums + stride, channel, C, False)
    _store_sum(z * a, sums + 2 * stride, channel, C, False)


@triton.jit
def _distance_gradient_kernel(
    x, y, x_mean, x_scale, y_mean, y_scale, means, upstream, dx, images, P,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """An instance norm's gradient, of twice the differences."""
    offsets, inside, channel, a, z = _normed_pair(x, y, x_mean, x_scale, y_mean, y_scale, P, C, ROWS, BLOCK_C)
    offset = _of_image(means, channel, C, False)
    slope = _of_image(means + images * C, channel, C, False)
    found = 2 * tl.load(upstream) * (z - offset - a * slope) * _of_image(x_scale, channel, C, False)
    tl.store(dx + offsets, found.to(dx.dtype.element_ty), mask=inside)
