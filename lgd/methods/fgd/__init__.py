"""FGD: the student imitates a frozen detector's features where attention and objects are, and the relations between
cells (docs/method.md, "FGD")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from lgd.config.frozen_teacher import FrozenTeacherMethod, Inherit
from lgd.config.settings import AUTO_IS_NONE, NonNegative, Positive
from lgd.methods.fgd.weights import AUTHORS, FGDWeights

if TYPE_CHECKING:
    from lgd.methods.distiller import Distiller
    from lgd.methods.parts import Parts


class FGD(FrozenTeacherMethod):
    """The weights of the four parts of the loss; None ("auto") is the authors' for this kind of detector.

    Those of FCOS are used for ATSS and POTO too, which have its head.
    """

    alpha: Annotated[NonNegative | None, AUTO_IS_NONE] = None
    """Factor of the foreground's features; None ("auto"): 1e-3 for RetinaNet, 5e-5 for R-CNN, 1.6e-3 for FCOS."""
    beta: Annotated[NonNegative | None, AUTO_IS_NONE] = None
    """Factor of the background's features; None ("auto"): half of the published ``alpha``."""
    gamma: Annotated[NonNegative | None, AUTO_IS_NONE] = None
    """Factor of the attention maps; None ("auto"): 5e-4 for RetinaNet, 5e-5 for R-CNN, 8e-4 for FCOS."""
    relation: Annotated[NonNegative | None, AUTO_IS_NONE] = None
    """Factor of the relations between cells, the paper's lambda; None ("auto"): 5e-6, 5e-7, 8e-6."""
    temperature: Annotated[Positive | None, AUTO_IS_NONE] = None
    """Temperature of the attention's softmax; None ("auto"): 0.5, and 0.8 for FCOS."""

    title: ClassVar[str] = "FGD"
    paper: ClassVar[str] = (
        "Yang et al., Focal and Global Knowledge Distillation for Detectors, CVPR 2022, arXiv 2111.11837"
    )
    learns_from: ClassVar[str] = "FPN features of a frozen detector"
    compares: ClassVar[str] = "squared difference weighted by attention and objects, attention maps, relations"
    authors_inherit: ClassVar[Inherit] = "fpn_and_head"

    def build(self, parts: Parts) -> Distiller:
        from lgd.methods.align import level_channels
        from lgd.methods.families import family
        from lgd.methods.fgd.distance import FocalGlobalDistance
        from lgd.methods.frozen_teacher import distil_features

        known = AUTHORS[family(parts.student)]
        weights = FGDWeights(
            known.alpha if self.alpha is None else self.alpha,
            known.beta if self.beta is None else self.beta,
            known.gamma if self.gamma is None else self.gamma,
            known.lambda_ if self.relation is None else self.relation,
            known.temperature if self.temperature is None else self.temperature,
        )
        return distil_features(
            parts, lambda teacher: FocalGlobalDistance(level_channels(parts.student, teacher), weights)
        )
