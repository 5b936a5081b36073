"""Evaluations in the course of a training: with their cost, their report, and a way out of the last one."""

from __future__ import annotations

import math
from collections.abc import Callable

from lgd.distributed import ranks
from lgd.training.progress import Progress, Stopped
from lgd.training.state import TrainingState
from lgd.training.trainer import Trainer


def evaluate_last(
    state: TrainingState,
    trainer: Trainer,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> None:
    """Evaluate after the last step. When ``should_stop`` returns True, save a checkpoint and raise Stopped.

    Several workers cannot agree in the middle of an evaluation: they save before it, and are not stopped in it.
    """
    steps = state.experiment.schedule.steps
    if ranks.world_size() > 1:
        if state.experiment.checkpoint.resolved_every(steps) and state.start < steps:
            state.save(trainer, steps)
        evaluate_and_report(state, steps, on_progress)
        return

    def stop_if_asked() -> None:
        if should_stop():
            raise Stopped(steps)

    try:
        evaluate_and_report(state, steps, on_progress, stop_if_asked)
    except Stopped:
        if state.start < steps:
            state.save(trainer, steps)
        raise


def evaluate_and_report(
    state: TrainingState,
    step: int,
    on_progress: Callable[[Progress], None],
    after_image: Callable[[], None] = lambda: None,
) -> None:
    """Evaluate after ``step`` steps, unless that has been done, and report the scores."""
    with state.meter.phase("evaluation"):
        evaluated = state.evaluations.evaluate(step, after_image)
    if evaluated and ranks.is_main_process():
        steps = state.experiment.schedule.steps
        on_progress({"step": step, "steps": steps, "loss": math.nan, "eta": math.nan, **progress_fields(state)})


def progress_fields(state: TrainingState) -> Progress:
    """Fields of a progress report besides step, loss and time."""
    ap = state.evaluations.last.student.AP if state.evaluations.last else None
    return {"spent": state.meter.total(), **({} if ap is None else {"AP": ap})}
