"""RetinaNet (Lin et al., ICCV 2017): detectron2's own class and defaults."""

from __future__ import annotations

from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead

from lgd.config.experiment import Detector
from lgd.detectors.common import dense_head, dense_levels, dense_pyramid, pixel_mean_std


def build(settings: Detector, num_classes: int) -> RetinaNet:
    """RetinaNet on p3 to p7. With standard settings its state dict has the model zoo's keys and shapes.

    Anchors as in section 4: three sizes an octave and three shapes, from 32 pixels on p3.
    """
    features, strides = dense_levels(settings)
    scale = settings.resolved_anchor_scale
    return RetinaNet(
        backbone=dense_pyramid(settings, p6_from="res5"),
        head=RetinaNetHead(**dense_head(settings, num_classes), num_anchors=9),
        head_in_features=features,
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[scale * s * 2 ** (i / 3) for i in range(3)] for s in strides],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=strides,
            offset=0.0,
        ),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        num_classes=num_classes,
        **pixel_mean_std(settings.backbone),
    )
