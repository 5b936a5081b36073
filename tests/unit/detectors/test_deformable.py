"""Modulated deformable convolution, and the blocks that use it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from lgd.detectors.deformable import DeformableBottleneck, ModulatedDeformConv


def _reference(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int, dilation: int, parts: int
) -> Tensor:
    """The operator as its authors define it, point by point. 3x3 with as much padding as dilation."""

    def at(channel: np.ndarray, row: float, column: float) -> float:
        # Bilinear: what lies outside the map counts as zero.
        total = 0.0
        for r, c in itertools.product(
            (math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)
        ):
            if 0 <= r < channel.shape[0] and 0 <= c < channel.shape[1]:
                total += channel[r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
        return total

    # numpy, whose single numbers are read in a tenth of the time.
    values, offsets, masks, weights = (z.detach().numpy() for z in (x, offset, mask, weight))
    images, channels, height, width = x.shape
    out, inner = weight.shape[:2]
    groups = channels // inner
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    y = np.zeros((images, out, rows, columns))
    for b, o, i, j in itertools.product(range(images), range(out), range(rows), range(columns)):
        for c, n in itertools.product(range(inner), range(9)):
            source = o // (out // groups) * inner + c
            part = source // (channels // parts)
            row = i * stride - dilation + n // 3 * dilation + offsets[b, part * 18 + 2 * n, i, j]
            column = j * stride - dilation + n % 3 * dilation + offsets[b, part * 18 + 2 * n + 1, i, j]
            value = at(values[b, source], row, column) * masks[b, part * 9 + n, i, j]
            y[b, o, i, j] += weights[o, c, n // 3, n % 3] * value
    return torch.from_numpy(y)


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "parts"), [(1, 1, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2), (2, 2, 2, 2)]
)
def test_deformable_convolution_is_the_original_operator(stride: int, dilation: int, groups: int, parts: int) -> None:
    torch.manual_seed(0)
    block = DeformableBottleneck(
        4,
        4,
        bottleneck_channels=4,
        stride=stride,
        num_groups=groups,
        dilation=dilation,
        deform_num_groups=parts,
        norm="",
    ).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    nn.init.normal_(block.conv2_offset.weight, std=0.5)
    nn.init.normal_(block.conv2_offset.bias)
    inner = block.conv1(x).relu()
    # detectron2 cuts into three equal parts and joins the first two again.
    first, second, mask = block.conv2_offset(inner).chunk(3, dim=1)
    offset = torch.cat((first, second), dim=1)
    assert offset.abs().max() > 2
    expected = _reference(inner, offset, mask.sigmoid(), block.conv2.weight, stride, dilation, parts)
    torch.testing.assert_close(block.conv2(inner, offset, mask.sigmoid()), expected)
    # The block joins it with its neighbours as any bottleneck does.
    residual = x if block.shortcut is None else block.shortcut(x)
    if stride == 1:
        torch.testing.assert_close(block(x), (block.conv3(expected.relu()) + residual).relu())


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_without_offset_it_is_a_plain_convolution(groups: int, stride_in_1x1: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "bottleneck_channels": 32,
        "stride": 2,
        "num_groups": groups,
        "norm": "BN",
        "stride_in_1x1": stride_in_1x1,
    }
    plain, deformable = BottleneckBlock(16, 64, **options).eval(), DeformableBottleneck(16, 64, **options).eval()
    found = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert found.missing_keys == ["conv2_offset.weight", "conv2_offset.bias"]
    assert found.unexpected_keys == []
    x = torch.randn(2, 16, 9, 11)
    # Masks start at sigmoid(0) = 1/2: twice the weight undoes it.
    with torch.no_grad():
        deformable.conv2.weight.mul_(2)
        torch.testing.assert_close(deformable(x), plain(x))
        deformable.conv2.weight.mul_(0.5)
        deformable.conv2_offset.bias[18:] = 50.0
        torch.testing.assert_close(deformable(x), plain(x))


@pytest.mark.parametrize(("stride", "dilation", "groups", "parts"), [(1, 1, 1, 1), (2, 2, 2, 2)])
def test_gradients_of_the_deformable_convolution(stride: int, dilation: int, groups: int, parts: int) -> None:
    torch.manual_seed(0)
    layer = ModulatedDeformConv(
        4, 2, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups, deformable_groups=parts
    ).double()
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    size = (2, 2) if stride == 2 else (4, 3)
    # Not at whole cells, where the bilinear weights have a kink.
    offset = (torch.randint(-2, 2, (2, 18 * parts, *size)) + 0.2 + 0.6 * torch.rand(2, 18 * parts, *size)).double()
    mask = torch.rand(2, 9 * parts, *size, dtype=torch.float64)

    def run(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x, offset, mask))
        return y

    inputs = (x, offset.requires_grad_(), mask.requires_grad_(), layer.weight)
    assert torch.autograd.gradcheck(run, inputs)


def test_deformable_block_under_autocast() -> None:
    torch.manual_seed(0)
    block = DeformableBottleneck(16, 32, bottleneck_channels=8, stride=2)
    nn.init.normal_(block.conv2_offset.weight, std=0.3)
    x = torch.randn(2, 16, 12, 12)
    exact = block(x)
    seen: list[torch.dtype] = []
    handle = block.conv2_offset.register_forward_hook(lambda _m, _i, y: seen.append(y.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = block(x)
    handle.remove()
    assert seen == [torch.float32]
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)
    rough.float().square().sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels 6 cannot be split into 4 groups"):
        ModulatedDeformConv(6, 8, 3, deformable_groups=4)
