"""Bottom-up networks and their FPN, from detectron2's own parts and with its parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone import Backbone as BottomUp
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn

from lgd.config.experiment import Backbone
from lgd.detectors.conventions import conventions
from lgd.detectors.deformable import DeformableBottleneck
from lgd.detectors.swin import Swin
from lgd.errors import InputError


@dataclass(frozen=True)
class Residual:
    """A network of the ResNet family as in its paper."""

    blocks: tuple[int, int, int, int]
    """Of each stage."""
    basic: bool = False
    """Two 3x3 convolutions a block instead of a bottleneck."""
    groups: int = 1
    """Of the 3x3 convolutions."""
    group_width: int = 64
    """Of the 3x3 convolutions of res2 (``groups`` * ``group_width`` channels); a stage has twice the channels of the
    one before."""

    @property
    def expansion(self) -> int:
        """Channels that res2 puts out over those of the stem."""
        return 1 if self.basic else 4


RESIDUAL = {
    "resnet18": Residual((2, 2, 2, 2), basic=True),
    "resnet34": Residual((3, 4, 6, 3), basic=True),
    "resnet50": Residual((3, 4, 6, 3)),
    "resnet101": Residual((3, 4, 23, 3)),
    "resnext101_32x8d": Residual((3, 4, 23, 3), groups=32, group_width=8),
}

STANDARD_WIDTH = 64
"""Channels of the stem of every network in RESIDUAL."""

DEFORMABLE_STAGES = (3, 4, 5)
"""Where ``deformable`` puts DCNv2: as in detectron2's dconv_c3-c5 configs and the paper's "R-101-DCNv2"."""


def build_resnet(settings: Backbone, out_features: list[str]) -> ResNet:
    """A ResNet or ResNeXt whose stages are ``width`` / 64 as wide as the standard ones (detectron2's own at 64)."""
    kind = RESIDUAL[settings.name]
    width, norm = settings.resolved_width, settings.resolved_norm
    bottleneck = kind.groups * kind.group_width * width // STANDARD_WIDTH
    stages = []
    channels = width
    for i, blocks in enumerate(kind.blocks):
        block: type[nn.Module] = BasicBlock
        extra: dict[str, Any] = {}
        if not kind.basic:
            block = DeformableBottleneck if settings.deformable and i + 2 in DEFORMABLE_STAGES else BottleneckBlock
            extra = {
                "bottleneck_channels": bottleneck * 2**i,
                "num_groups": kind.groups,
                "stride_in_1x1": conventions(settings).stride_in_1x1,
            }
        stages.append(
            ResNet.make_stage(
                block,
                blocks,
                stride_per_block=[1 if i == 0 else 2] + [1] * (blocks - 1),
                in_channels=channels,
                out_channels=out_channels(settings, i + 2),
                norm=norm,
                **extra,
            )
        )
        channels = out_channels(settings, i + 2)
    stem = BasicStem(in_channels=3, out_channels=width, norm=norm)
    return ResNet(stem, stages, out_features=out_features, freeze_at=settings.resolved_freeze_at)


def build_bottom_up(settings: Backbone, out_features: list[str]) -> BottomUp:
    """The network that ``settings`` describe, its weights random, putting out ``out_features`` of res2 to res5."""
    if settings.is_timm:
        # Imported here: with timm it takes half a second, and most commands do without.
        from lgd.detectors.timm_network import TimmNetwork

        network = TimmNetwork(
            settings.timm_name, out_features, norm=settings.resolved_norm, freeze_at=settings.resolved_freeze_at
        )
        if settings.norm in ("FrozenBN", "SyncBN") and not network.has_batch_norm:
            raise InputError(f"backbone {settings.name} has no batch norms: leave norm at auto")
        return network
    if settings.name == "swin_t":
        return Swin(settings.resolved_width, out_features, freeze_at=settings.resolved_freeze_at)
    return build_resnet(settings, out_features)


def build_fpn(settings: Backbone, channels: int, in_features: list[str], top_block: nn.Module | None) -> FPN:
    """A feature pyramid of ``channels`` channels on the bottom-up network's ``in_features``."""
    return FPN(build_bottom_up(settings, in_features), in_features, channels, top_block=top_block)


def out_channels(settings: Backbone, stage: int) -> int:
    """Channels that stage 2 to 5 (``res2`` ... ``res5``) puts out."""
    if settings.is_timm:
        from lgd.detectors.timm_network import inspect_timm

        return inspect_timm(settings.timm_name).stages[2**stage].channels
    expansion = RESIDUAL[settings.name].expansion if settings.name in RESIDUAL else 1
    return settings.resolved_width * 2 ** (stage - 2) * expansion
