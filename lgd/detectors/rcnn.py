"""Faster R-CNN (Ren et al., NeurIPS 2015) and Mask R-CNN (He et al., ICCV 2017) on FPN: detectron2's own classes."""

from __future__ import annotations

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)

from lgd.config.experiment import Detector
from lgd.detectors.backbones import build_fpn
from lgd.detectors.common import head_norm, pixel_mean_std

FEATURES = ("p2", "p3", "p4", "p5", "p6")
STRIDES = (4, 8, 16, 32, 64)
"""Pixels of the image to a cell of each level. Regions are pooled from all levels but the last."""

BOX_CELLS, MASK_CELLS = 7, 14
"""Side of what is pooled from a region for the box head and for the mask head."""


def build_faster_rcnn(settings: Detector, num_classes: int) -> GeneralizedRCNN:
    """Faster R-CNN on p2 to p6. With standard settings its state dict has the model zoo's keys and shapes.

    The box head has no convolutions: ``head_convs`` and ``head_norm`` are not read.
    """
    return _build(settings, num_classes, {})


def build_mask_rcnn(settings: Detector, num_classes: int) -> GeneralizedRCNN:
    """Mask R-CNN on p2 to p6. With standard settings its state dict has the model zoo's keys and shapes.

    ``head_convs`` and ``head_norm`` are the mask head's. In training, images with objects need ``gt_masks``
    (PolygonMasks or BitMasks) in their instances.
    """
    masks = {
        "mask_in_features": list(FEATURES[:-1]),
        "mask_pooler": _pooler(MASK_CELLS),
        "mask_head": MaskRCNNConvUpsampleHead(
            input_shape=ShapeSpec(channels=settings.channels, height=MASK_CELLS, width=MASK_CELLS),
            num_classes=num_classes,
            # The last one is the upsampling's.
            conv_dims=[settings.channels] * (settings.head_convs + 1),
            conv_norm=head_norm(settings),
        ),
    }
    return _build(settings, num_classes, masks)


def _build(settings: Detector, num_classes: int, masks: dict[str, Any]) -> GeneralizedRCNN:
    scale = settings.resolved_anchor_scale
    proposals = RPN(
        in_features=list(FEATURES),
        head=StandardRPNHead(in_channels=settings.channels, num_anchors=3),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[scale * s] for s in STRIDES], aspect_ratios=[0.5, 1.0, 2.0], strides=list(STRIDES), offset=0.0
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2 * settings.proposals, settings.proposals),
        post_nms_topk=(settings.proposals, settings.proposals),
        nms_thresh=0.7,
    )
    heads = StandardROIHeads(
        num_classes=num_classes,
        batch_size_per_image=settings.regions,
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=list(FEATURES[:-1]),
        box_pooler=_pooler(BOX_CELLS),
        box_head=FastRCNNConvFCHead(
            ShapeSpec(channels=settings.channels, height=BOX_CELLS, width=BOX_CELLS),
            conv_dims=[],
            fc_dims=[settings.fc_dim] * 2,
        ),
        box_predictor=FastRCNNOutputLayers(
            ShapeSpec(channels=settings.fc_dim),
            box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
            num_classes=num_classes,
            test_score_thresh=0.05,
        ),
        **masks,
    )
    return GeneralizedRCNN(
        backbone=build_fpn(settings.backbone, settings.channels, ["res2", "res3", "res4", "res5"], LastLevelMaxPool()),
        proposal_generator=proposals,
        roi_heads=heads,
        **pixel_mean_std(settings.backbone),
        input_format="BGR",
    )


def _pooler(cells: int) -> ROIPooler:
    return ROIPooler(
        output_size=cells, scales=[1 / s for s in STRIDES[:-1]], sampling_ratio=0, pooler_type="ROIAlignV2"
    )
