"""When the backbone trains and when the distillation loss reaches the student (docs/method.md, "Schedule")."""

from __future__ import annotations

from detectron2.engine import HookBase
from torch import nn

from lgd.config.phases import Phases
from lgd.methods.distiller import Distiller
from lgd.methods.teacher_watch import TeacherWatch


class _Freeze(HookBase):
    """Freeze parameters in some steps. Those without a gradient are skipped by the optimiser, weight decay and momentum
    included. What was frozen before stays frozen."""

    def __init__(self, part: nn.Module) -> None:
        self._parameters = [p for p in part.parameters() if p.requires_grad]
        self._frozen = False

    def freezes(self, iteration: int) -> bool:
        raise NotImplementedError

    def before_step(self) -> None:
        self._set(self.freezes(self.trainer.iter))

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


class FreezeBackbone(_Freeze):
    """Freeze a bottom-up network while its phase lasts, so that it needs no backward pass."""

    def __init__(self, bottom_up: nn.Module, phases: Phases) -> None:
        super().__init__(bottom_up)
        self._phases = phases

    def freezes(self, iteration: int) -> bool:
        return self._phases.freezes_backbone(iteration)


class FreezeDistance(_Freeze):
    """Freeze the parameters of a distance with ``frozen_without_distillation`` while the student does not distil.

    Here, before a step, since several workers must agree on what gets a gradient before its forward pass.
    """

    def __init__(self, model: Distiller) -> None:
        super().__init__(model.distance)
        self._model = model

    def freezes(self, iteration: int) -> bool:
        return not self._model.distills_student(iteration)

    @classmethod
    def of(cls, model: nn.Module) -> FreezeDistance | None:
        if not isinstance(model, Distiller):
            return None
        return cls(model) if getattr(model.distance, "frozen_without_distillation", False) else None


class ReadTeacherWatch(HookBase):
    """Read ``watch`` every ``period`` steps (see :class:`lgd.methods.teacher_watch.TeacherWatch`)."""

    def __init__(self, watch: TeacherWatch, period: int) -> None:
        self._watch, self._period = watch, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0:
            self._watch.read(done)
