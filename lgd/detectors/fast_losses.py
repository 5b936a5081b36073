"""For detectron2's detectors: label assignment and losses that do not wait for the device, ResNets with fewer passes,
and GroupNorms that keep half precision.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import nn

from lgd.detectors import fcos_fast, group_norms, rcnn_fast, resnet_fast, retinanet_fast
from lgd.detectors.atss import ATSS
from lgd.detectors.poto import POTO


def use_fast_losses(detector: nn.Module) -> nn.Module:
    """Replace methods of detectron2's own RetinaNet, FCOS, R-CNNs and ResNets by equal ones; returns ``detector``.

    The class, the parameters and their names stay. Any other detector, and a subclass, stays as it is. Of ATSS and POTO
    (lgd/detectors) only GroupNorms are replaced.
    """
    target = cast(Any, detector)
    if type(detector) is RetinaNet:
        retinanet_fast.use(target)
    elif type(detector) is FCOS:
        fcos_fast.use(target)
    elif type(detector) is GeneralizedRCNN:
        rcnn_fast.use(target)
    if type(detector) in (RetinaNet, FCOS, GeneralizedRCNN, ATSS, POTO):
        # Other code may expect float32 behind a GroupNorm.
        group_norms.use(detector)
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
