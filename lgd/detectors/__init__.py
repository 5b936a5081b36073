"""Detectors by name: detectron2's own classes, built from an experiment's settings."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lgd.detectors import retinanet
from lgd.experiment import Detector

BUILDERS: dict[str, Callable[[Detector, int], nn.Module]] = {"retinanet": retinanet.build}


def build_detector(settings: Detector, num_classes: int) -> nn.Module:
    """Build the plain detector that ``settings`` describe, its bottom-up weights random."""
    return BUILDERS[settings.name](settings, num_classes)
