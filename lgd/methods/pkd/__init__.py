"""PKD: the student's features correlate with a frozen detector's, channel by channel (docs/method.md, "PKD")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.config.settings import AUTO_IS_NONE, NonNegative, PositiveInt

if TYPE_CHECKING:
    from torch import nn

    from lgd.methods.distiller import Distiller
    from lgd.methods.parts import Parts


class PKD(FrozenTeacherMethod):
    """The loss between standardised features of the finest levels."""

    weight: Annotated[NonNegative | None, AUTO_IS_NONE] = None
    """Factor of the loss; None ("auto"): the authors' 10 for dense detectors and 6 for R-CNN."""
    levels: PositiveInt = 4
    """Pyramid levels that are compared, from the finest on; the authors' 4 leave out the coarsest."""

    title: ClassVar[str] = "PKD"
    paper: ClassVar[str] = (
        "Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient,"
        " NeurIPS 2022, arXiv 2207.02039"
    )
    learns_from: ClassVar[str] = "FPN features of a frozen detector"
    compares: ClassVar[str] = "Pearson correlation of each channel"

    def build(self, parts: Parts) -> Distiller:
        from lgd.methods.families import family
        from lgd.methods.frozen_teacher import distil_features
        from lgd.methods.pkd.distance import PearsonDistance, check_channels

        authors = 6.0 if family(parts.student) == "rcnn" else 10.0

        def distance(teacher: nn.Module) -> PearsonDistance:
            check_channels(parts.student, teacher)
            return PearsonDistance(authors if self.weight is None else self.weight, self.levels)

        return distil_features(parts, distance)
