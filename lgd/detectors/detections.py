"""What a detector returns in evaluation."""

from __future__ import annotations

import copy

from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from lgd.errors import InputError


def in_original_pixels(found: Instances, height: int, width: int) -> Instances:
    """Detections in the pixels of the original image, whose size the batch has as ``height`` and ``width``.

    detectron2's detectors return them so. Of another detector, which returns them in the pixels of the resized image,
    they are scaled. Raises InputError for masks of another size.
    """
    if found.image_size == (height, width):
        return found
    if found.has("pred_masks"):
        size = f"{found.image_size[1]}x{found.image_size[0]}"
        raise InputError(f"the detector returns masks of {size} pixels for an image of {width}x{height}")
    # It scales the boxes in place.
    return detector_postprocess(copy.deepcopy(found), height, width)
