"""tf-KD: R-CNN's class scores are drawn towards a made teacher that is right, but not certain (docs/method.md,
"tf-KD")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lgd.config.base_method import DistillationMethod
from lgd.config.detector import Detector
from lgd.config.schedule import Schedule
from lgd.config.settings import NonNegative, Positive

if TYPE_CHECKING:
    from lgd.methods.parts import Parts
    from lgd.methods.tf_kd.model import TeacherFree


class TfKD(DistillationMethod):
    """Teacher-free regularisation of the classification loss. How it applies to detectors is ours.

    The defaults are those of the paper's formula for ResNet-18 on images of one class (the released code computes
    something else: docs/method.md, "tf-KD").
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Part of the classification loss that the divergence takes."""
    temperature: Positive = 20.0
    """T, by which logits and the fixed distribution are divided before the softmax."""
    multiplier: NonNegative = 100.0
    """m, a factor of the divergence, which a high temperature makes small."""
    correct: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Probability of the true class in the fixed distribution."""

    title: ClassVar[str] = "tf-KD (our definition)"
    paper: ClassVar[str] = (
        "Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020, arXiv 1909.11723"
    )
    learns_from: ClassVar[str] = "a fixed distribution with the true class on top"
    compares: ClassVar[str] = "KL divergence of the regions' class softmax"
    activations: ClassVar[float] = 2.2

    def refusal(self, student: Detector, schedule: Schedule) -> str:
        if student.is_built_in and not student.is_rcnn:
            return (
                f"method tfkd needs a softmax over classes, which {student.name} has not: use faster_rcnn or mask_rcnn"
            )
        return ""

    def build(self, parts: Parts) -> TeacherFree:
        from lgd.methods.tf_kd.model import TeacherFree

        return TeacherFree(
            parts.student,
            phases=self.phases(parts.experiment.schedule),
            alpha=self.alpha,
            temperature=self.temperature,
            multiplier=self.distill_weight * self.multiplier,
            correct=self.correct,
        )
