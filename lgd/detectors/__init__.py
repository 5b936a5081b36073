"""Detectors, built from an experiment's settings: built-in ones by name, and those from elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lgd.config.experiment import Data, Detector
from lgd.detectors import atss, fcos, from_elsewhere, poto, rcnn, retinanet

BUILDERS: dict[str, Callable[[Detector, int], nn.Module]] = {
    "retinanet": retinanet.build,
    "fcos": fcos.build,
    "faster_rcnn": rcnn.build_faster_rcnn,
    "mask_rcnn": rcnn.build_mask_rcnn,
    "atss": atss.build,
    "poto": poto.build,
}


def build_detector(settings: Detector, num_classes: int, data: Data | None = None) -> nn.Module:
    """Build the plain detector that ``settings`` describe, its bottom-up weights random.

    data: the sizes that images come in, for a detector from elsewhere that would resize them itself.
    """
    if not settings.is_built_in:
        return from_elsewhere.build(settings, num_classes, data)
    return BUILDERS[settings.name](settings, num_classes)
