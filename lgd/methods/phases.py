"""When the backbone trains and when the distillation loss reaches the student (docs/method.md, "Schedule")."""

from __future__ import annotations

from detectron2.engine import HookBase
from torch import nn

from lgd.config.phases import Phases
from lgd.methods.teacher_watch import TeacherWatch


class FreezeBackbone(HookBase):
    """Freeze a bottom-up network while its phase lasts, so that it needs no backward pass.

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


class ReadTeacherWatch(HookBase):
    """Read ``watch`` every ``period`` steps (see :class:`lgd.methods.teacher_watch.TeacherWatch`)."""

    def __init__(self, watch: TeacherWatch, period: int) -> None:
        self._watch, self._period = watch, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0:
            self._watch.read(done)
