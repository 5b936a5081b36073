"""The optimiser of a training: SGD or AdamW, and for LGD's teacher one of its own; and its schedule."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import Tensor, nn

from lgd.config.experiment import Experiment, Schedule

TEACHER, DISTANCE, ADAPTERS = "teacher.", "distance.", "channel_adapters."
"""First part of the names of the parameters that are dropped after training."""


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers as one, each with its own parameter groups: they step together, and are saved together."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        # The groups are the parts' own dicts, so that a learning rate set in one place is set in both.
        super().__init__([group for part in parts for group in part.param_groups], {})

    @property
    def parts(self) -> tuple[torch.optim.Optimizer, ...]:
        return self._parts

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("a closure would be called once for each optimiser")
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading gives the parts new groups.
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def build_optimizer(model: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    """SGD or AdamW, as the schedule says, over student, teacher and distillation adapter.

    Norm layers get no weight decay without ``decay_norms``.

    The teacher's modules have a learning rate of their own, and AdamW, where the method says so. Which of their
    parameters are decayed is as in the student.
    """
    schedule, method = experiment.schedule, experiment.method
    rate = schedule.resolved_lr

    def factor(name: str) -> float:
        if name.startswith(TEACHER):
            return method.teacher_lr_factor(rate)
        return method.adapter_lr_factor if name.startswith((DISTANCE, ADAPTERS)) else 1.0

    groups = get_default_optimizer_params(
        model,
        base_lr=rate,
        weight_decay=schedule.weight_decay,
        # None: the same as every other parameter's.
        weight_decay_norm=None if schedule.decay_norms else 0.0,
        lr_factor_func=factor,
    )
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if not method.teacher_has_adamw:
        return _sgd(groups, schedule)
    teacher = {parameter for name, parameter in model.named_parameters() if name.startswith(TEACHER)}
    kept, adamw = _split(groups, teacher)
    return CombinedOptimizer(_sgd(kept, schedule), torch.optim.AdamW(adamw, fused=True))


def _split(
    groups: list[dict[str, Any]], chosen: AbstractSet[Tensor]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups without the ``chosen`` parameters, and with them alone; empty groups are left out."""
    parts = []
    for inside in (False, True):
        found = [{**x, "params": [p for p in x["params"] if (p in chosen) is inside]} for x in groups]
        parts.append([x for x in found if x["params"]])
    return parts[0], parts[1]


def _sgd(groups: list[dict[str, Any]], schedule: Schedule) -> torch.optim.SGD:
    # The fused kernel takes a third of foreach's time on the CPU, which the teacher's wide layers make noticeable.
    optimizer = torch.optim.SGD(groups, lr=schedule.resolved_lr, momentum=schedule.momentum, fused=True)
    if schedule.momentum:
        # The fused kernel refuses a group in which only some parameters have a momentum buffer, which is the case when
        # the backbone is unfrozen. SGD starts from a momentum of zero, so this changes no result.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def match_state_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give every buffer of the optimiser its parameter's memory format, which the fused kernels require.

    They differ after loading the checkpoint of a training with another ``memory_format``.
    """
    for part in single_optimizers(optimizer):
        for parameter, state in part.state.items():
            for name, buffer in state.items():
                if not isinstance(buffer, Tensor) or buffer.shape != parameter.shape:
                    continue
                if buffer.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter).copy_(buffer)


def single_optimizers(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """The optimisers that ``optimizer`` combines; itself where it is one."""
    yield from optimizer.parts if isinstance(optimizer, CombinedOptimizer) else (optimizer,)


def buffers_per_parameter(group: dict[str, Any]) -> int:
    """How many numbers an optimiser keeps for each of a group's parameters: AdamW two, SGD its momentum."""
    return 2 if "betas" in group else int(bool(group.get("momentum")))


def lr_factor(schedule: Schedule) -> WarmupParamScheduler:
    """Factor of the learning rate: linear warm-up, then multiplied by ``gamma`` at each milestone."""
    # In a training of a few steps milestones may round to the same step, or to one after the last.
    falls = [x for x in (round(x * schedule.steps) for x in schedule.milestones) if x < schedule.steps]
    at = sorted({0, *falls})
    steps = MultiStepParamScheduler(
        values=[schedule.gamma ** sum(fall <= x for fall in falls) for x in at],
        milestones=at[1:],
        num_updates=schedule.steps,
    )
    warmup = schedule.resolved_warmup_steps / schedule.steps
    return WarmupParamScheduler(steps, schedule.warmup_factor, warmup, "linear")
