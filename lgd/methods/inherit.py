"""Starting a student's FPN and head from the weights of another detector."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lgd.config.detector import Detector
from lgd.config.frozen_teacher import Inherit
from lgd.detectors.model_layout import bottom_up_path
from lgd.errors import InputError

BACKBONE = "backbone."
"""Prefix of the names of a detector's pyramid and of the network below it."""

PREPROCESSING = ("pixel_mean", "pixel_std")
"""What the student's own bottom-up network was trained with, and the teacher's with its own."""


def inherit(student: nn.Module, weights: Mapping[str, Tensor], what: Inherit) -> None:
    """Give the student's FPN, or its FPN and head, the values of ``weights``, a detector's state dict.

    The bottom-up network keeps its own. Raises InputError, naming the first one, where a weight is missing or of
    another shape.
    """
    if what == "none":
        return
    own, below = student.state_dict(), bottom_up_path(student, Detector())
    if below is None:
        raise InputError(f"method.inherit={what}: the pyramid of a {type(student).__name__} is not known from the rest")
    pyramid = [x for x in own if x.startswith(BACKBONE) and not x.startswith(f"{below}.")]
    head = [x for x in own if not x.startswith(BACKBONE) and x not in PREPROCESSING] if what == "fpn_and_head" else []
    names = [*pyramid, *head]
    for name in names:
        found = weights.get(name)
        if found is None or found.shape != own[name].shape:
            there = "is not in it" if found is None else f"is {list(found.shape)} there, {list(own[name].shape)} here"
            raise InputError(
                f"method.inherit={what}: the student cannot start from the teacher's weights, {name} {there}"
            )
    student.load_state_dict({name: weights[name] for name in names}, strict=False)
