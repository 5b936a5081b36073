"""An R-CNN with teacher-free regularisation of its classification (Yuan et al., CVPR 2020, section 5).

Shape suffixes: R regions, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.config.phases import Phases
from lgd.errors import InputError
from lgd.methods.class_scores import capture_scores, check_scores
from lgd.methods.distiller import TrainingModel

CLASSIFICATION = "loss_cls"
"""detectron2's name of R-CNN's classification loss."""


class TeacherFree(TrainingModel):
    """The detector's losses, with 1 - alpha of its classification loss, and ``loss_distill``.

    ``loss_distill`` is alpha * multiplier * :func:`virtual_teacher_divergence`. InputError where the detector is no
    R-CNN with a softmax.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        phases: Phases,
        alpha: float = 0.1,
        temperature: float = 20.0,
        multiplier: float = 100.0,
        correct: float = 0.99,
    ) -> None:
        super().__init__(student, phases=phases)
        if not hasattr(student, "roi_heads"):
            raise InputError(f"method tfkd needs a softmax over classes, which a {type(student).__name__} has not")
        check_scores(student, "tf-KD")
        self.alpha = alpha
        self.temperature = temperature
        self.multiplier = multiplier
        self.correct = correct

    def losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        with capture_scores(self.student) as scores:
            losses: dict[str, Tensor] = dict(self.student(batch))
        regions = scores.regions
        if regions is None:
            raise RuntimeError("the detector classified no regions")
        made = virtual_teacher_divergence(regions.logits, regions.classes, self.temperature, self.correct)
        losses[CLASSIFICATION] = (1 - self.alpha) * losses[CLASSIFICATION]
        losses["loss_distill"] = self.alpha * self.multiplier * made
        return losses


def virtual_teacher_divergence(
    logits: Tensor, classes: Tensor, temperature: float = 20.0, correct: float = 0.99
) -> Tensor:
    """KL divergence from softmax(logits / T) to softmax(u / T), the mean over the regions (scalar, float32).

    u has ``correct`` on a region's true class and the rest in equal parts on the others. logits: (R, K + 1); classes:
    (R,), the background a class like the others.
    """
    count = logits.shape[1]
    # A comparison, not one_hot: that may wait for the device to check the range.
    is_true = classes[:, None] == torch.arange(count, device=logits.device)
    made = torch.where(is_true, correct, (1 - correct) / max(1, count - 1))
    log_p = F.log_softmax(made / temperature, dim=1)
    log_q = F.log_softmax(logits.float() / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / max(1, len(logits))
