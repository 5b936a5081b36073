"""BAN: a trained detector teaches a new one of the same architecture by its class scores (docs/method.md, "BAN")."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lgd.config.detector import Backbone, Detector
from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.config.settings import NonNegative, Positive

if TYPE_CHECKING:
    from lgd.methods.ban.model import BornAgain
    from lgd.methods.parts import Parts


class BAN(FrozenTeacherMethod):
    """The divergence from the class scores of a trained detector, one generation. How it applies to detectors is ours.

    By default the teacher is the student's own architecture, trained as the baseline.
    """

    weight: NonNegative = 1.0
    """Factor of the divergence."""
    temperature: Positive = 1.0
    """Logits are divided by it before the sigmoid or softmax."""

    title: ClassVar[str] = "BAN (our definition)"
    paper: ClassVar[str] = "Furlanello et al., Born-Again Neural Networks, ICML 2018, arXiv 1805.04770"
    learns_from: ClassVar[str] = "class scores of a trained detector of its own kind"
    compares: ClassVar[str] = "KL divergence of class scores"
    teacher_must_lead: ClassVar[bool] = False

    def resolved_backbone(self, student: Detector) -> Backbone:
        return self.teacher.backbone or student.backbone

    def build(self, parts: Parts) -> BornAgain:
        from lgd.methods.ban.model import BornAgain
        from lgd.methods.inherit import inherit

        teacher = parts.frozen_detector()
        inherit(parts.student, teacher.state_dict(), self.inherit)
        return BornAgain(
            parts.student,
            teacher,
            phases=self.phases(parts.experiment.schedule),
            weight=self.distill_weight * self.weight,
            temperature=self.temperature,
        )
