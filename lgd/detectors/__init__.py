"""Detectors by name, built from an experiment's settings, and what the LGD paper trains each of them with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lgd.detectors import atss, fcos, poto, rcnn, retinanet
from lgd.errors import InputError
from lgd.experiment import Detector

BUILDERS: dict[str, Callable[[Detector, int], nn.Module]] = {
    "retinanet": retinanet.build,
    "fcos": fcos.build,
    "faster_rcnn": rcnn.build_faster_rcnn,
    "mask_rcnn": rcnn.build_mask_rcnn,
    "atss": atss.build,
    "poto": poto.build,
}

_PAPER: dict[str, tuple[bool, bool, float]] = {
    # context object, detached appearance, learning rate
    "retinanet": (True, False, 0.01),
    "fcos": (True, False, 0.01),
    "faster_rcnn": (False, True, 0.02),
    "mask_rcnn": (False, True, 0.02),
    "atss": (True, False, 0.01),
    "poto": (True, False, 0.01),
}


def build_detector(settings: Detector, num_classes: int) -> nn.Module:
    """Build the plain detector that ``settings`` describe, its bottom-up weights random."""
    return BUILDERS[settings.name](settings, num_classes)


def paper_defaults(detector: str, backbone: str) -> dict[str, Any]:
    """The LGD paper's settings that depend on the detector, as dotted settings of an Experiment.

    ``method.context``: the context object, on for RetinaNet and FCOS but off for FCOS with R-50, off for R-CNN.
    ``method.detach_appearance``: on for R-CNN. ``schedule.lr``: for 16 images a batch. For ATSS and POTO the released
    configs say nothing on the first two: theirs are RetinaNet's here, the rate is that of their own papers.

    detector, backbone: names as in Detector and Backbone. Raises InputError for an unknown detector.
    """
    if detector not in _PAPER:
        raise InputError(f"no detector {detector!r}: choose one of {', '.join(_PAPER)}")
    context, detached, rate = _PAPER[detector]
    if (detector, backbone) == ("fcos", "resnet50"):
        context = False
    return {"method.context": context, "method.detach_appearance": detached, "schedule.lr": rate}
