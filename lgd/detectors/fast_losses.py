"""Label assignment and losses that do not wait for the device, and ResNets with fewer passes, for detectron2's."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import nn

from lgd.detectors import fcos_fast, rcnn_fast, resnet_fast, retinanet_fast


def use_fast_losses(detector: nn.Module) -> nn.Module:
    """Replace methods of detectron2's own RetinaNet, FCOS, R-CNNs and ResNets by equal ones; returns ``detector``.

    The class, the parameters and their names stay. Any other detector, and a subclass, stays as it is. ATSS and POTO
    (lgd/detectors) need no replacement.
    """
    target = cast(Any, detector)
    if type(detector) is RetinaNet:
        retinanet_fast.use(target)
    elif type(detector) is FCOS:
        fcos_fast.use(target)
    elif type(detector) is GeneralizedRCNN:
        rcnn_fast.use(target)
    resnet_fast.use(detector)
    return detector


REPLACED = (
    *("label_anchors", "assign_anchors", "assign_regions", "label_and_sample_proposals"),
    *("losses", "forward", "_forward_mask"),
)
"""Methods that :func:`use_fast_losses` replaces, of the detector or of one of its parts."""


def use_detectron2_losses(detector: nn.Module) -> None:
    """Undo :func:`use_fast_losses`; cached anchors stay."""
    for part in detector.modules():
        for method in REPLACED:
            if isinstance(vars(part).get(method), partial):
                # Back to the class's own.
                del vars(part)[method]
