"""RoIAlign of regions of several levels without a wait for how many regions there are of each.

Two operators of their own, so that benchmarks/wait_counter.py can count them: by Triton's kernels where those can be
used, else by torchvision's, level by level.

Shape suffixes: M regions of the batch, S x S cells pooled of each, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import roi_align

from lgd.kernels.usable import channels_last


def pools_without_waits(maps: Sequence[Tensor]) -> bool:
    """Whether :func:`pool_regions` waits for nothing: with the kernels, and wherever there is no GPU to wait for.

    The kernels' sums are in no fixed order, which torch can be told to refuse.
    """
    if not maps[0].is_cuda:
        return True
    return channels_last(*maps, any_size=True) and not torch.are_deterministic_algorithms_enabled()


def pool_regions(
    maps: Sequence[Tensor], regions_M5: Tensor, levels_M: Tensor, scales: Sequence[float], size: int
) -> Tensor:
    """Pooled regions (M, C, S, S), of the maps' type; their shape and arithmetic are detectron2's ROIAlignV2's.

    maps: (B, C, h, w) each. regions: the image's number and a box in pixels. levels: the map of each region. scales:
    cells of each map to a pixel.
    """
    found: Tensor = _PoolRegions.apply(regions_M5, levels_M, list(scales), size, *maps)
    return found


class _PoolRegions(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, regions_M5: Tensor, levels_M: Tensor, scales: list[float], size: int, *maps: Tensor
    ) -> Tensor:
        ctx.save_for_backward(regions_M5, levels_M)
        ctx.scales, ctx.shapes = scales, [x.shape for x in maps]
        return _pool(list(maps), regions_M5, levels_M, scales, size).permute(0, 3, 1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        gradient = grads[0].permute(0, 2, 3, 1).contiguous()
        shapes = [number for shape in ctx.shapes for number in shape]
        return None, None, None, None, *_pool_backward(gradient, shapes, *ctx.saved_tensors, ctx.scales)


@torch.library.custom_op("lgd::pool_regions", mutates_args=())
def _pool(maps: list[Tensor], regions: Tensor, levels: Tensor, scales: list[float], size: int) -> Tensor:
    """Pooled regions (M, S, S, C)."""
    if channels_last(*maps, any_size=True):
        # Lazy: Triton is not installed everywhere.
        from lgd.kernels.roi_align import pool

        return pool(maps, regions, levels, scales, size)
    pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], size, size)
    with torch.autocast(regions.device.type, enabled=False):
        for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
            (here,) = torch.where(levels == level)
            pooled[here] = roi_align(x.float(), regions[here], size, scale, 0, True).to(x.dtype)
    return pooled.permute(0, 2, 3, 1).contiguous()


@_pool.register_fake
def _(maps: list[Tensor], regions: Tensor, levels: Tensor, scales: list[float], size: int) -> Tensor:
    return maps[0].new_empty(len(regions), size, size, maps[0].shape[1])


@torch.library.custom_op("lgd::pool_regions_backward", mutates_args=())
def _pool_backward(
    gradient: Tensor, shapes: list[int], regions: Tensor, levels: Tensor, scales: list[float]
) -> list[Tensor]:
    """Gradients of the maps, of the gradient's type, from that of the pooled regions. shapes: four numbers a map."""
    sizes = [shapes[i : i + 4] for i in range(0, len(shapes), 4)]
    if channels_last(gradient.permute(0, 3, 1, 2), any_size=True):
        from lgd.kernels.roi_align import pool_backward

        return [x.to(gradient.dtype) for x in pool_backward(gradient, sizes, regions, levels, scales)]
    found = []
    for level, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        (here,) = torch.where(levels == level)
        of_pooled = gradient[here].permute(0, 3, 1, 2).float()
        dx = torch.ops.torchvision._roi_align_backward(
            of_pooled, regions[here], scale, *of_pooled.shape[-2:], *size, 0, True
        )
        found.append(dx.to(gradient.dtype))
    return found


@_pool_backward.register_fake
def _(gradient: Tensor, shapes: list[int], regions: Tensor, levels: Tensor, scales: list[float]) -> list[Tensor]:
    return [gradient.new_empty(shapes[i : i + 4]) for i in range(0, len(shapes), 4)]
