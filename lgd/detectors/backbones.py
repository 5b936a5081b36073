"""Bottom-up networks and their FPN, from detectron2's own parts and with its parameter names."""

from __future__ import annotations

from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn

from lgd.experiment import Backbone

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def build_resnet(settings: Backbone, out_features: list[str]) -> ResNet:
    """A ResNet whose stages are ``width`` / 64 as wide as the standard ones (equal to detectron2's at 64)."""
    basic = settings.name in ("resnet18", "resnet34")
    block, expansion = (BasicBlock, 1) if basic else (BottleneckBlock, 4)
    stages = []
    channels = settings.width
    for stage, blocks in enumerate(BLOCKS[settings.name]):
        inner = settings.width * 2**stage
        # The stride lies in the 1x1 convolution as in the MSRA weights that detectron2's ImageNet models come from.
        extra = {} if basic else {"bottleneck_channels": inner, "stride_in_1x1": True}
        stages.append(
            ResNet.make_stage(
                block,
                blocks,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (blocks - 1),
                in_channels=channels,
                out_channels=inner * expansion,
                norm=settings.norm,
                **extra,
            )
        )
        channels = inner * expansion
    stem = BasicStem(in_channels=3, out_channels=settings.width, norm=settings.norm)
    return ResNet(stem, stages, out_features=out_features, freeze_at=settings.freeze_at)


def build_fpn(settings: Backbone, channels: int, in_features: list[str], top_block: nn.Module | None) -> FPN:
    """A feature pyramid of ``channels`` channels on the bottom-up network's ``in_features``."""
    return FPN(build_resnet(settings, in_features), in_features, channels, top_block=top_block)


def out_channels(settings: Backbone, stage: int) -> int:
    """Channels that stage 2 to 5 (``res2`` ... ``res5``) puts out."""
    expansion = 1 if settings.name in ("resnet18", "resnet34") else 4
    return settings.width * 2 ** (stage - 2) * expansion
