"""What several detectors share: the pyramid of the dense ones, their heads' norm, their targets and normalisers.

Shape suffixes: B images, M objects of an image, R anchors or locations of all levels together, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from torch import Tensor, nn

from lgd.config.experiment import Backbone, Detector
from lgd.detectors.backbones import build_fpn, out_channels
from lgd.detectors.conventions import conventions

DENSE_FEATURES = ("p3", "p4", "p5", "p6", "p7")
DENSE_STRIDES = (8, 16, 32, 64, 128)
"""Pixels of the image to a cell of each of these levels."""

GROUPS = 32
"""Groups of detectron2's GN."""
GROUP_CHANNELS = 8
"""Channels a group at the standard 256 channels; a narrower head has fewer groups, not narrower ones."""


def pixel_mean_std(settings: Backbone) -> dict[str, Any]:
    """``pixel_mean`` and ``pixel_std`` (BGR) of a meta-architecture: what the backbone's weights were trained with."""
    assumed = conventions(settings)
    return {"pixel_mean": assumed.pixel_mean, "pixel_std": assumed.pixel_std}


def dense_levels(settings: Detector) -> tuple[list[str], list[int]]:
    """Names and strides of a dense detector's levels."""
    count = len(DENSE_FEATURES) if settings.coarse_levels else 3
    return list(DENSE_FEATURES[:count]), list(DENSE_STRIDES[:count])


def dense_pyramid(settings: Detector, p6_from: str) -> FPN:
    """An FPN with levels p3 to p7; p6 is convolved from ``p6_from``, the bottom-up ``res5`` or the FPN's ``p5``."""
    if not settings.coarse_levels:
        return build_fpn(settings.backbone, settings.channels, ["res3", "res4", "res5"], None)
    incoming = settings.channels if p6_from == "p5" else out_channels(settings.backbone, 5)
    top = LastLevelP6P7(incoming, settings.channels, in_feature=p6_from)
    return build_fpn(settings.backbone, settings.channels, ["res3", "res4", "res5"], top)


def dense_head(settings: Detector, num_classes: int) -> dict[str, Any]:
    """Arguments that RetinaNetHead and FCOSHead share."""
    return {
        "input_shape": [ShapeSpec(channels=settings.channels)] * len(dense_levels(settings)[0]),
        "num_classes": num_classes,
        "conv_dims": [settings.channels] * settings.head_convs,
        "norm": head_norm(settings),
    }


def head_norm(settings: Detector) -> str | Callable[[int], nn.Module]:
    """The head's norm as detectron2 takes it: "" for none, or a function from channels to a GroupNorm."""
    return group_norm if settings.resolved_head_norm == "GN" else ""


def group_norm(channels: int) -> nn.GroupNorm:
    """detectron2's GN from 256 channels on. Below, fewer groups of as many channels each.

    A group of one channel would have nothing to normalise on a level of 1 x 1 cells. Detector refuses channels that
    do not split so.
    """
    return nn.GroupNorm(min(GROUPS, channels // GROUP_CHANNELS), channels)


class LinearTransform(Box2BoxTransformLinear):
    """FCOS's box coding, decoded in float32 whatever the head's precision.

    In bfloat16 a coordinate near 1000 pixels could only be told to 4 pixels. In float32 it is detectron2's, bit for
    bit.
    """

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (R, 4) in pixels from distances (R, 4), in anchor sizes, to the centre of anchors (R, 4)."""
        decoded: Tensor = super().apply_deltas(deltas.float(), boxes)
        return decoded
