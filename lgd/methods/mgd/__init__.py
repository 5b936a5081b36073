"""MGD: from features with hidden cells the student generates a frozen detector's (docs/method.md, "MGD")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from lgd.config.frozen_teacher import FrozenTeacherMethod, Inherit
from lgd.config.settings import AUTO_IS_NONE, Fraction, NonNegative

if TYPE_CHECKING:
    from lgd.methods.distiller import Distiller
    from lgd.methods.parts import Parts

DENSE, RCNN = (2e-5, 0.65), (5e-7, 0.45)
"""The authors' alpha and ratio for RetinaNet and for Faster R-CNN."""


class MGD(FrozenTeacherMethod):
    """How much is hidden, and the weight of the loss."""

    alpha: Annotated[NonNegative | None, AUTO_IS_NONE] = None
    """Factor of the loss; None ("auto"): the authors' 2e-5 for dense detectors and 5e-7 for R-CNN."""
    ratio: Annotated[Fraction | None, AUTO_IS_NONE] = None
    """Part of the cells that is hidden; None ("auto"): the authors' 0.65 for dense detectors and 0.45 for R-CNN."""

    title: ClassVar[str] = "MGD"
    paper: ClassVar[str] = "Yang et al., Masked Generative Distillation, ECCV 2022, arXiv 2205.01529"
    learns_from: ClassVar[str] = "FPN features of a frozen detector"
    compares: ClassVar[str] = "squared difference of what is generated from masked features"
    authors_inherit: ClassVar[Inherit] = "fpn_and_head"

    def build(self, parts: Parts) -> Distiller:
        from lgd.methods.align import level_channels
        from lgd.methods.families import family
        from lgd.methods.frozen_teacher import distil_features
        from lgd.methods.mgd.distance import MaskedGenerativeDistance

        alpha, ratio = RCNN if family(parts.student) == "rcnn" else DENSE
        alpha = alpha if self.alpha is None else self.alpha
        ratio = ratio if self.ratio is None else self.ratio
        return distil_features(
            parts,
            lambda teacher: MaskedGenerativeDistance(level_channels(parts.student, teacher), alpha=alpha, ratio=ratio),
        )
