"""What pretrained weights assume of the images and of the network, beyond names and shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from lgd.config.detector import PACKAGE, TIMM_SCHEME
from lgd.config.experiment import Backbone

Triple = tuple[float, float, float]

PIXEL_MEAN: Triple = (103.530, 116.280, 123.675)
"""ImageNet's mean, BGR, 0 to 255."""
UNIT_STD: Triple = (1.0, 1.0, 1.0)
"""For weights whose first layer has the deviation in it already: Caffe2's."""
IMAGENET_STD: Triple = (57.375, 57.120, 58.395)
"""ImageNet's deviation, BGR, 0 to 255."""

LITE_MEAN: Triple = (127.0, 127.0, 127.0)
LITE_STD: Triple = (128.0, 128.0, 128.0)
"""Normalisation of EfficientNet-Lite's own weights, which are not those that timm downloads for the same network."""

TORCHVISION = "torchvision://"
"""Scheme of torchvision's weights; see lgd/detectors/weight_sources.py."""


@dataclass(frozen=True)
class Conventions:
    """Assumptions of pretrained weights."""

    pixel_mean: Triple
    """BGR, as detectron2's meta-architectures take it."""
    pixel_std: Triple
    """The same."""
    stride_in_1x1: bool
    """A bottleneck with a stride has it in its first 1x1 convolution, as in MSRA's ResNets, and not in the 3x3 one."""


def conventions(settings: Backbone) -> Conventions:
    """Assumptions of a backbone's weights, known from their name alone so that it holds without the file too.

    - torchvision's (``torchvision://``, a file under torch hub's name, detectron2's ``ImageNetPretrained/torchvision``)
      and Swin's: divided by the deviation, stride in the 3x3 convolution.
    - ResNeXt: the same (detectron2's X-101 configs), but the ``catalog://`` models, which have it in their first layer.
    - FAIR's GroupNorm ResNets (``R-50-GN``): mean only, stride in the 3x3 convolution.
    - every other ResNet is taken for MSRA's or a model-zoo detector: mean only, stride in the 1x1 convolution.
    - a model of timm's: what timm says of its weights; the packages of EfficientNet-Lite: (x - 127) / 128.
    - from scratch: divided by the deviation.

    ``settings.pixel_std`` overrules the deviation. Where a file turns out otherwise, load_weights says so.
    """
    source = settings.weights.partition("#sha256=")[0]
    mean, std, stride_in_1x1 = PIXEL_MEAN, UNIT_STD, True
    if settings.is_timm:
        mean, std = _of_timm(settings)
    elif _is_torchvision(source):
        std, stride_in_1x1 = IMAGENET_STD, False
    elif settings.name == "resnext101_32x8d":
        std, stride_in_1x1 = (UNIT_STD if source.startswith("catalog://") else IMAGENET_STD), False
    elif settings.name == "swin_t" or settings.from_scratch:
        std = IMAGENET_STD
    elif re.search(r"-GN(\.pkl)?$", source):
        stride_in_1x1 = False
    if settings.pixel_std != "auto":
        std = UNIT_STD if settings.pixel_std == "unit" else IMAGENET_STD
    return Conventions(mean, std, stride_in_1x1)


def _of_timm(settings: Backbone) -> tuple[Triple, Triple]:
    if settings.weights.startswith(PACKAGE):
        return LITE_MEAN, LITE_STD
    # Imported here: with timm it takes half a second, and most commands do without.
    from lgd.detectors.timm_network import inspect_timm

    named = settings.weights.removeprefix(TIMM_SCHEME) if settings.weights.startswith(TIMM_SCHEME) else ""
    model = inspect_timm(named or settings.timm_name)
    mean, std = (tuple(255 * value for value in reversed(rgb)) for rgb in (model.mean, model.std))
    return cast(Triple, mean), cast(Triple, std)


def _is_torchvision(source: str) -> bool:
    return (
        source.startswith(TORCHVISION)
        or "ImageNetPretrained/torchvision/" in source
        # resnet50-0676ba61.pth: how torch hub names its files.
        or re.fullmatch(r"(resne|swin)[a-z0-9_]*-[0-9a-f]{8}\.pth", source.rsplit("/", 1)[-1]) is not None
    )
