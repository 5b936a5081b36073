"""A student beside a frozen detector whose class scores it learns from (Furlanello et al., ICML 2018, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lgd.config.phases import Phases
from lgd.methods.class_scores import capture_scores, check_comparable, divergence, other_logits
from lgd.methods.distiller import TrainingModel
from lgd.methods.feature_capture import capture_features
from lgd.methods.frozen_teacher import FrozenTeacher


class BornAgain(TrainingModel):
    """The student's losses and ``loss_distill``, its divergence from the teacher's class scores.

    teacher: a detector with scores of the same anchors and classes (InputError otherwise). R-CNN's head reads the
    regions that the student sampled. weight, temperature: of the divergence.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, *, phases: Phases, weight: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__(student, phases=phases)
        check_comparable(student, teacher, "BAN")
        self.teacher = FrozenTeacher(teacher, student, method="BAN", whole=True)
        self.weight = weight
        self.temperature = temperature

    def losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        student: Any = self.student
        with capture_features(student.backbone) as capture, capture_scores(student) as scores:
            losses: dict[str, Tensor] = dict(student(batch))
        with torch.no_grad():
            features = self.teacher(capture, [x["instances"] for x in batch])
            taught = other_logits(self.teacher.detector, features, scores)
        losses["loss_distill"] = self.weight * divergence(scores, taught, self.temperature)
        return losses
