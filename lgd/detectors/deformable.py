"""Modulated deformable convolution (DCNv2: Zhu et al., CVPR 2019) without compiling anything.

detectron2's own needs its CUDA extension. These modules run on torchvision's operator, on the CPU and on CUDA, and
have detectron2's parameter names and layout, so that checkpoints pass between the two unchanged. They are used even
where detectron2 was compiled: one implementation, the same numbers everywhere.

Shapes: B images, C channels, k kernel size (k * k points), G deformable groups, (h, w) of the input, (h', w') of the
output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from fvcore.nn import weight_init
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class ModulatedDeformConv(nn.Module):
    """y(p) = sum over kernel points n of weight_n * mask_n(p) * x(p + p_n + offset_n(p))   (the paper's eq. 1).

    ``x`` between cells is bilinear, and zero outside the map. Parameters: ``weight`` (C_out, C_in / groups, k, k), and
    those of ``norm``, which is applied to the result; no bias. On CUDA the gradient is summed with atomics: equal
    seeds do not give equal bits there.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for what, channels, parts in (
            ("in_channels", in_channels, groups),
            ("out_channels", out_channels, groups),
            ("in_channels", in_channels, deformable_groups),
        ):
            if channels % parts:
                raise ValueError(f"{what} {channels} cannot be split into {parts} groups")
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        # weight_init asks for it.
        self.bias = None
        self.norm = norm
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x_BChw: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Convolve; (B, C_out, h', w') of ``x``'s precision.

        offset: (B, G * 2 * k * k, h', w') in cells of the input; group after group, then kernel point after kernel
        point in rows, then the shift in y before the one in x. mask: (B, G * k * k, h', w'), the same order.
        """
        # Positions need float32: at column 100, bfloat16 can say no more than "half a cell to the right".
        # Under autocast torchvision does not cast on every device and version, and would reject mixed types.
        with torch.autocast(x_BChw.device.type, enabled=False):
            exact = _at_least_float32
            y = deform_conv2d(
                exact(x_BChw),
                exact(offset),
                exact(self.weight),
                stride=(self.stride, self.stride),
                padding=(self.padding, self.padding),
                dilation=(self.dilation, self.dilation),
                mask=exact(mask),
            )
        y = y.to(x_BChw.dtype)
        return y if self.norm is None else self.norm(y)

    def extra_repr(self) -> str:
        return (
            f"{tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}, dilation={self.dilation},"
            f" groups={self.groups}, deformable_groups={self.deformable_groups}"
        )


class DeformableBottleneck(CNNBlockBase):
    """A residual bottleneck whose 3x3 convolution is deformable; the parameters of detectron2's
    ``DeformBottleneckBlock`` with ``deform_modulated=True``: conv1, conv2_offset, conv2, conv3, shortcut.

    A plain 3x3 convolution, ``conv2_offset``, says where to look: of its 27 * G channels the first 18 * G are the
    offsets, the last 9 * G the masks before their sigmoid. It starts at zero, hence the block as one with a plain 3x3
    convolution and every mask at 1/2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        deform_num_groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = (
            None if in_channels == out_channels else _conv_1x1(in_channels, out_channels, norm, stride=stride)
        )
        self.conv1 = _conv_1x1(in_channels, bottleneck_channels, norm, stride=stride_1x1)
        self.conv2_offset = Conv2d(
            bottleneck_channels,
            27 * deform_num_groups,
            kernel_size=3,
            stride=stride_3x3,
            padding=dilation,
            dilation=dilation,
        )
        self.conv2 = ModulatedDeformConv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            stride=stride_3x3,
            padding=dilation,
            dilation=dilation,
            groups=num_groups,
            deformable_groups=deform_num_groups,
            norm=get_norm(norm, bottleneck_channels),
        )
        self.conv3 = _conv_1x1(bottleneck_channels, out_channels, norm)
        for layer in (self.conv1, self.conv2, self.conv3, self.shortcut):
            if layer is not None:
                weight_init.c2_msra_fill(layer)
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h', w')."""
        inner = F.relu(self.conv1(x_BChw))
        with torch.autocast(inner.device.type, enabled=False):
            where = self.conv2_offset(_at_least_float32(inner))
        points = self.conv2.deformable_groups * 9
        offset, mask = where.split((2 * points, points), dim=1)
        inner = F.relu(self.conv2(inner, offset, mask.sigmoid()))
        residual = x_BChw if self.shortcut is None else self.shortcut(x_BChw)
        return F.relu(self.conv3(inner) + residual)


def _conv_1x1(in_channels: int, out_channels: int, norm: str, stride: int = 1) -> nn.Module:
    conv: nn.Module = Conv2d(
        in_channels, out_channels, kernel_size=1, stride=stride, bias=False, norm=get_norm(norm, out_channels)
    )
    return conv


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
