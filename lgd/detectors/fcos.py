"""FCOS (Tian et al., ICCV 2019; its journal version, arXiv 2006.09214): detectron2's own class and defaults."""

from __future__ import annotations

from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

from lgd.config.experiment import Detector
from lgd.detectors.common import LinearTransform, dense_head, dense_levels, dense_pyramid, pixel_mean_std


def build(settings: Detector, num_classes: int) -> FCOS:
    """FCOS on p3 to p7, as in detectron2's lazy config: same state dict, head with GN, p6 and p7 from p5.

    It has no anchors: ``anchor_scale`` is not read.
    """
    return FCOS(
        backbone=dense_pyramid(settings, p6_from="p5"),
        head=FCOSHead(**dense_head(settings, num_classes)),
        head_in_features=dense_levels(settings)[0],
        box2box_transform=LinearTransform(normalize_by_size=True),
        num_classes=num_classes,
        test_score_thresh=0.2,
        test_nms_thresh=0.6,
        **pixel_mean_std(settings.backbone),
    )
