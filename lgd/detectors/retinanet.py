"""RetinaNet (Lin et al., ICCV 2017): detectron2's own class and defaults."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from torch import nn

from lgd.detectors.backbones import build_fpn, out_channels
from lgd.experiment import Detector

STRIDES = (8, 16, 32, 64, 128)
PIXEL_MEAN, PIXEL_STD = (103.530, 116.280, 123.675), (1.0, 1.0, 1.0)
"""BGR mean of ImageNet; the MSRA weights have the deviation in their first layer."""
SCRATCH_STD = (57.375, 57.120, 58.395)


def build(settings: Detector, num_classes: int) -> RetinaNet:
    """RetinaNet on p3 to p7. With standard settings its state dict has the model zoo's keys and shapes."""
    features = ["res3", "res4", "res5"]
    top = LastLevelP6P7(out_channels(settings.backbone, 5), settings.channels)
    backbone = build_fpn(settings.backbone, settings.channels, features, top)
    levels = len(STRIDES)
    return RetinaNet(
        backbone=backbone,
        head=RetinaNetHead(
            input_shape=[ShapeSpec(channels=settings.channels)] * levels,
            num_classes=num_classes,
            num_anchors=9,
            conv_dims=[settings.channels] * settings.head_convs,
            norm=_head_norm(settings),
        ),
        head_in_features=[f"p{i + 3}" for i in range(levels)],
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[settings.anchor_scale * s * 2 ** (i / 3) for i in range(3)] for s in STRIDES],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=list(STRIDES),
            offset=0.0,
        ),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        num_classes=num_classes,
        pixel_mean=PIXEL_MEAN,
        pixel_std=SCRATCH_STD if settings.backbone.weights == "none" else PIXEL_STD,
    )


def _head_norm(settings: Detector) -> str:
    # detectron2's GN has 32 groups; a narrow head cannot be split into as many.
    if settings.head_norm == "GN" and settings.channels % 32:
        raise ValueError(f"head_norm GN needs channels divisible by 32, got {settings.channels}")
    return settings.head_norm
