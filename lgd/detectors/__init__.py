"""Detectors by name, built from an experiment's settings."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lgd.config.experiment import Detector
from lgd.detectors import atss, fcos, poto, rcnn, retinanet

BUILDERS: dict[str, Callable[[Detector, int], nn.Module]] = {
    "retinanet": retinanet.build,
    "fcos": fcos.build,
    "faster_rcnn": rcnn.build_faster_rcnn,
    "mask_rcnn": rcnn.build_mask_rcnn,
    "atss": atss.build,
    "poto": poto.build,
}


def build_detector(settings: Detector, num_classes: int) -> nn.Module:
    """Build the plain detector that ``settings`` describe, its bottom-up weights random."""
    return BUILDERS[settings.name](settings, num_classes)
