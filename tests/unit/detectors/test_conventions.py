"""Pixel statistics and strides that a backbone's weights were made with."""

from __future__ import annotations

from typing import Any

import pytest

from lgd.config.experiment import Backbone
from lgd.data import mapper
from lgd.detectors.backbones import build_bottom_up
from lgd.detectors.conventions import IMAGENET_STD, PIXEL_MEAN, UNIT_STD, conventions

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


@pytest.mark.parametrize(
    ("settings", "std", "stride_in_1x1"),
    [
        ({"weights": "none"}, IMAGENET_STD, True),
        ({"weights": MSRA}, UNIT_STD, True),
        (
            {"weights": "detectron2://COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl"},
            UNIT_STD,
            True,
        ),
        ({"weights": "detectron2://ImageNetPretrained/torchvision/R-50.pkl"}, IMAGENET_STD, False),
        ({"weights": "torchvision://resnet50"}, IMAGENET_STD, False),
        ({"weights": "/data/resnet50-0676ba61.pth"}, IMAGENET_STD, False),
        ({"weights": "/data/student.pth"}, UNIT_STD, True),
        ({"weights": "/data/student.pth", "pixel_std": "imagenet"}, IMAGENET_STD, True),
        ({"weights": "none", "pixel_std": "unit"}, UNIT_STD, True),
        ({"weights": "catalog://ImageNetPretrained/FAIR/R-50-GN", "norm": "GN"}, UNIT_STD, False),
        (
            {"name": "resnext101_32x8d", "weights": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"},
            IMAGENET_STD,
            False,
        ),
        ({"name": "resnext101_32x8d", "weights": "catalog://ImageNetPretrained/FAIR/X-101-32x8d"}, UNIT_STD, False),
        ({"name": "resnext101_32x8d"}, IMAGENET_STD, False),
        ({"name": "swin_t", "weights": "/data/swin_tiny_patch4_window7_224.pth"}, IMAGENET_STD, True),
    ],
)
def test_pixel_statistics_and_strides(settings: dict[str, Any], std: Any, stride_in_1x1: bool) -> None:
    found = conventions(Backbone(**settings))
    assert (found.pixel_mean, found.pixel_std) == (PIXEL_MEAN, std)
    assert found.stride_in_1x1 is stride_in_1x1


def test_what_the_loader_paints_over_is_zero_to_a_detector() -> None:
    assert mapper.PIXEL_MEAN == PIXEL_MEAN


@pytest.mark.parametrize("weights", [MSRA, "torchvision://resnet50"])
def test_the_stride_follows_the_weights(weights: str) -> None:
    block = build_bottom_up(Backbone(width=8, weights=weights), ["res3"]).res3[0]
    strides = (block.conv1.stride, block.conv2.stride)
    assert strides == (((2, 2), (1, 1)) if weights == MSRA else ((1, 1), (2, 2)))
