"""FGFI: near the objects, the student imitates the features of a trained detector (docs/method.md, "FGFI")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lgd.config.detector import Detector
from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.config.phases import Phases
from lgd.config.schedule import Schedule
from lgd.config.settings import AUTO_IS_NONE, NonNegative, NonNegativeInt
from lgd.methods.fgfi.levels import LevelRule

if TYPE_CHECKING:
    from lgd.methods.distiller import Distiller
    from lgd.methods.parts import Parts


WITHOUT_IMITATION = 400
"""Steps of the released code before imitation begins."""


class FGFI(FrozenTeacherMethod):
    """The imitation loss of a frozen teacher's features, and where it applies."""

    levels: LevelRule = "best"
    """Pyramid levels on which an object counts: ``best``, the one with the anchor of its largest IoU; ``fpn``, the one
    of FPN's equation 1; ``all``."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A cell is imitated when its IoU with an object exceeds this part of the object's largest IoU on the level."""
    weight: NonNegative = 0.01
    """Factor of the imitation loss."""
    relu: bool = True
    """A ReLU after the adaptation layer."""
    from_step: Annotated[NonNegativeInt | None, AUTO_IS_NONE] = None
    """Steps without imitation at the beginning; None ("auto"): 400, as in the released code, but at most a tenth of the
    training."""

    title: ClassVar[str] = "FGFI"
    paper: ClassVar[str] = (
        "Wang et al., Distilling Object Detectors with Fine-grained Feature Imitation, CVPR 2019, arXiv 1906.03609"
    )
    learns_from: ClassVar[str] = "FPN features of a frozen detector"
    compares: ClassVar[str] = "squared difference near the objects"

    def phases(self, schedule: Schedule) -> Phases:
        return Phases(distill_from=self._start(schedule))

    def refusal(self, student: Detector, schedule: Schedule) -> str:
        start = self._start(schedule)
        if start >= schedule.steps:
            return f"method.from_step {start} must be below schedule.steps {schedule.steps}"
        return ""

    def _start(self, schedule: Schedule) -> int:
        return min(WITHOUT_IMITATION, schedule.steps // 10) if self.from_step is None else self.from_step

    def build(self, parts: Parts) -> Distiller:
        from lgd.methods.fgfi.imitation import ImitationDistance
        from lgd.methods.frozen_teacher import distil_features

        return distil_features(
            parts,
            lambda teacher: ImitationDistance(
                parts.student,
                teacher,
                levels=self.levels,
                threshold=self.threshold,
                weight=self.weight,
                relu=self.relu,
            ),
        )
