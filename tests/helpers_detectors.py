"""Small detectors from elsewhere: configs of detectron2's and models of torchvision's, narrow enough for a CPU."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from lgd.config.experiment import Detector

ZOO_RETINANET = "zoo:COCO-Detection/retinanet_R_50_FPN_1x.yaml"
ZOO_MASK_RCNN = "zoo:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
ZOO_FCOS = "zoo:COCO-Detection/fcos_R_50_FPN_1x.py"

NARROW = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS=8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS=16",
    "MODEL.RESNETS.WIDTH_PER_GROUP=8",
    "MODEL.RESNETS.NORM=BN",
    "MODEL.BACKBONE.FREEZE_AT=0",
    "MODEL.FPN.OUT_CHANNELS=16",
)
NARROW_RETINANET = (*NARROW, "MODEL.RETINANET.NUM_CONVS=1")
NARROW_MASK_RCNN = (
    *NARROW,
    "MODEL.ROI_BOX_HEAD.FC_DIM=32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM=8",
    "MODEL.ROI_MASK_HEAD.NUM_CONV=1",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=16",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN=20",
    "MODEL.RPN.POST_NMS_TOPK_TEST=10",
    "TEST.DETECTIONS_PER_IMAGE=5",
)

VITDET = """
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import SimpleFeaturePyramid, ViT

model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, window_size=0, out_feature="last_feat"),
    in_feature="${.net.out_feature}", out_channels=32, scale_factors=(2.0, 1.0, 0.5), top_block=None, norm="LN",
)
model.head_in_features = ["p3", "p4", "p5"]
model.head.input_shape = [ShapeSpec(channels=32)] * 3
model.head.conv_dims = [32]
model.anchor_generator.sizes = [[32], [64], [128]]
model.anchor_generator.strides = [8, 16, 32]
model.head.num_anchors = 3
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
model.input_format = "RGB"
"""
"""A LazyConfig: RetinaNet on ViTDet's pyramid, for RGB images."""


def source(name: str, *overrides: str, **settings: Any) -> Detector:
    return Detector.model_validate({"source": name, "overrides": overrides, "weights": "none", **settings})


def vitdet(directory: Path) -> str:
    """The source of a file with VITDET."""
    path = directory / "vitdet.py"
    path.write_text(VITDET)
    return str(path)


class Levels(nn.Module):
    """A backbone of two levels with the given channels, as torchvision's classes take one."""

    def __init__(self, channels: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.out_channels = channels[0]
        self.fine = nn.Conv2d(3, channels[0], 8, stride=8)
        self.coarse = nn.Conv2d(channels[0], channels[1], 2, stride=2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = F.relu(self.fine(images))
        return OrderedDict(fine=fine, coarse=F.relu(self.coarse(fine)))


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(((16.0,), (32.0,)), ((0.5, 1.0, 2.0),) * 2)


def torchvision_retinanet(num_classes: int, min_size: int = 64, max_size: int = 96) -> RetinaNet:
    """torchvision's class, tiny: for ``tests.helpers_detectors:torchvision_retinanet``."""
    model = RetinaNet(
        Levels(), num_classes + 1, anchor_generator=_anchors(), min_size=min_size, max_size=max_size, score_thresh=0.0
    )
    # Its scores begin at 0.01 each, of which none stands out.
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.2)
    return model


def torchvision_rcnn(num_classes: int, min_size: int = 64, max_size: int = 96) -> FasterRCNN:
    sizes = {"min_size": min_size, "max_size": max_size}
    small = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16}
    pooler = MultiScaleRoIAlign(["fine", "coarse"], 7, 2)
    return FasterRCNN(
        Levels(), num_classes + 1, rpn_anchor_generator=_anchors(), box_roi_pool=pooler, box_score_thresh=0.0,
        **sizes, **small,
    )  # fmt: skip


class Uneven(nn.Module):
    """A detector of one's own whose levels have 8 and 12 channels, and whose backbone says nothing of itself."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = Levels((8, 12))
        self.heads = nn.ModuleDict({"fine": nn.Conv2d(8, num_classes, 1), "coarse": nn.Conv2d(12, num_classes, 1)})

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        features = self.backbone(torch.stack([x["image"] for x in batch]) / 255)
        scores = [self.heads[name](x).square().mean() for name, x in features.items()]
        return {"loss_score": torch.stack(scores).sum()}


def uneven(num_classes: int) -> nn.Module:
    return Uneven(num_classes)
