"""A trained detector that does not change, as the source of features: the teacher of FGFI, PKD, CWD, MGD and FGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.detectors.model_layout import SINGLE_LEVEL, pixel_statistics
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.feature_capture import FeatureCapture, Features
from lgd.methods.inherit import inherit
from lgd.methods.parts import Parts, levels_of
from lgd.methods.unregistered import Unregistered


class FrozenTeacher(Unregistered):
    """A trained detector's backbone and FPN on the images that the student saw.

    detector: detectron2's, with a level of the same name and stride for each of the student's; InputError otherwise,
    naming ``method``. whole: keep its head too, as :attr:`detector`; False keeps the backbone only.
    """

    uses_student_head = False
    """The student's head was not trained to read these features."""

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self, detector: nn.Module, student: nn.Module, *, method: str = "a frozen teacher", whole: bool = False
    ) -> None:
        levels, wanted = levels_of(detector), levels_of(student)
        if any(name not in levels or levels[name].stride != x.stride for name, x in wanted.items()):
            raise InputError(
                f"the teacher's levels are {_listed(levels)}: {method} needs the student's, {_listed(wanted)}"
            )
        super().__init__(detector if whole else cast(nn.Module, detector.backbone))
        self._names = tuple(wanted)
        scale, shift, self._flips = _renormalisation(detector, student)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    @property
    def detector(self) -> nn.Module:
        """The frozen detector. Raises ValueError where only its backbone was kept."""
        if not hasattr(self._unregistered[0], "backbone"):
            raise ValueError("only the teacher's backbone was kept: build it with whole=True")
        return self._unregistered[0]

    @property
    def backbone(self) -> nn.Module:
        """The frozen backbone and FPN."""
        return cast(nn.Module, getattr(self._unregistered[0], "backbone", self._unregistered[0]))

    @torch.no_grad()
    def forward(self, capture: FeatureCapture, instances: Sequence[Any]) -> Features:
        """Features of the student's levels, without gradient.

        instances: their ``image_size`` is used where the detectors' pixel statistics differ.
        """
        features = self.backbone(self.images(capture, instances))
        if isinstance(features, Tensor):
            features = {SINGLE_LEVEL: features}
        return {name: features[name] for name in self._names}

    def images(self, capture: FeatureCapture, instances: Sequence[Any]) -> Tensor:
        """The student's padded batch (B, 3, H, W), normalised as the teacher was trained on."""
        images = capture.images.flip(1) if self._flips else capture.images
        if self.scale is not None and self.shift is not None:
            # Padding is zero for both detectors, so it must not be shifted.
            inside = _image_masks([x.image_size for x in instances], capture.image_size, images.device)
            images = (images * self.scale + self.shift).masked_fill(~inside[:, None], 0)
        return images


def distil_features(parts: Parts, distance: Callable[[nn.Module], nn.Module]) -> Distiller:
    """The student beside the frozen detector of its method. distance: makes it from the teacher detector."""
    method, student = cast(FrozenTeacherMethod, parts.experiment.method), parts.student
    detector = parts.frozen_detector()
    # First, for it refuses a teacher without the student's levels.
    teacher = FrozenTeacher(detector, student, method=method.title)
    inherit(student, detector.state_dict(), method.inherit)
    return Distiller(
        student,
        teacher,
        distance(detector),
        phases=method.phases(parts.experiment.schedule),
        distill_weight=method.distill_weight,
    )


def _listed(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} (stride {x.stride})" for name, x in levels.items())


def _renormalisation(detector: nn.Module, student: nn.Module) -> tuple[Tensor | None, Tensor | None, bool]:
    """From the student's normalised pixels to the teacher's: scale and shift (3, 1, 1), and whether channels are in the
    other order, which comes first. None where mean and deviation are equal.

    Raises InputError where one of the two does not say how it normalises.
    """
    theirs, ours = pixel_statistics(detector), pixel_statistics(student)
    if theirs is None and ours is None:
        return None, None, False
    if theirs is None or ours is None:
        unknown = type(student if ours is None else detector).__name__
        raise InputError(f"{unknown} has no pixel_mean and pixel_std: the teacher's images cannot be made from its own")
    flips = theirs.order != ours.order
    mean, std = (torch.tensor(x)[:, None, None] for x in (theirs.mean, theirs.std))
    student_mean, student_std = (torch.tensor(x[::-1] if flips else x)[:, None, None] for x in (ours.mean, ours.std))
    if torch.equal(mean, student_mean) and torch.equal(std, student_std):
        return None, None, flips
    return student_std / std, (student_mean - mean) / std, flips


def _image_masks(image_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Tensor:
    """(B, H, W) bool: the pixels of a padded batch that lie in an image of its own (height, width)."""
    size_B2 = torch.tensor(image_sizes).to(device, non_blocking=True)
    rows, columns = (torch.arange(x, device=device) for x in padded)
    return (rows < size_B2[:, :1])[:, :, None] & (columns < size_B2[:, 1:])[:, None, :]
