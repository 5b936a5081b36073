"""When the backbone trains and when the distillation loss reaches the student (METHOD, "Schedule")."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.engine import HookBase
from torch import nn


@dataclass(frozen=True)
class Phases:
    """Iterations at which a training changes phase.

    frozen_until: before it the student's bottom-up backbone gets no update.
    distill_from, distill_until: outside [from, until) the student does not learn from the distance: LGD's trains its
    adapter only, FGFI's rests.
    """

    frozen_until: int = 0
    distill_from: int = 0
    distill_until: int | None = None

    def freezes_backbone(self, iteration: int) -> bool:
        return iteration < self.frozen_until

    def distills_student(self, iteration: int) -> bool:
        return self.distill_from <= iteration and (self.distill_until is None or iteration < self.distill_until)


class FreezeBackbone(HookBase):
    """Keep a bottom-up network out of the backward pass while its phase lasts.

    What detectron2 froze for good (``freeze_at``) stays frozen. Parameters without a gradient are skipped by the
    optimiser, weight decay and momentum included.
    """

    def __init__(self, bottom_up: nn.Module, phases: Phases) -> None:
        self._parameters = [p for p in bottom_up.parameters() if p.requires_grad]
        self._phases = phases
        self._frozen = False

    def before_step(self) -> None:
        self._set(self._phases.freezes_backbone(self.trainer.iter))

    def after_train(self) -> None:
        self._set(False)

    def _set(self, frozen: bool) -> None:
        if frozen == self._frozen:
            return
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None
        self._frozen = frozen
