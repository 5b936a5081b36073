"""The kinds of detectors that methods have different published settings, or different losses, for."""

from __future__ import annotations

from typing import Literal

import torchvision
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import nn

Family = Literal["retinanet", "fcos", "rcnn"]


def family(detector: nn.Module) -> Family:
    """``rcnn`` with heads for regions, ``fcos`` for FCOS and its subclasses (ATSS, POTO), else ``retinanet``."""
    if hasattr(detector, "roi_heads"):
        return "rcnn"
    return "fcos" if isinstance(detector, (FCOS, torchvision.models.detection.FCOS)) else "retinanet"
