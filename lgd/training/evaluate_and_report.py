"""Evaluations in the course of a training: with their cost, their report, and a way out of them."""

from __future__ import annotations

import math
from collections.abc import Callable

from lgd.distributed import notice, ranks
from lgd.training.progress import Progress, Stopped
from lgd.training.state import TrainingState
from lgd.training.trainer import Trainer


def evaluate_and_report(
    state: TrainingState,
    trainer: Trainer,
    step: int,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> None:
    """Evaluate after ``step`` steps, unless that has been done, and report the scores.

    It may take minutes, in which a notice (lgd/distributed/notice.py) or a stop must not lose the steps before it. A
    training of one worker asks for both after each image, and then saves: raises Stopped when ``should_stop`` returns
    True, notice.Leaving where this process got SIGTERM. What goes on from there evaluates first. Several workers cannot
    agree in the middle of an evaluation: they save before it, and are not stopped in it.
    """
    if state.evaluations.has(step):
        return
    if _is_worth_saving(state):
        _save(state, trainer, step)

    def after_image() -> None:
        asked, stop = notice.asked(), should_stop()
        if asked or stop:
            # Not notice.saved(): the scores are to be saved too, as soon as they are there.
            _save(state, trainer, step)
        if asked == "leave":
            state.writer.wait()
            raise notice.Leaving
        if stop:
            raise Stopped(step)

    with state.meter.phase("evaluation"):
        state.evaluations.evaluate(step, after_image if ranks.world_size() == 1 else lambda: None)
    if ranks.is_main_process():
        steps = state.experiment.schedule.steps
        on_progress({"step": step, "steps": steps, "loss": math.nan, "eta": math.nan, **progress_fields(state)})


def measure_label_signal(state: TrainingState, step: int) -> None:
    """Measure the teacher's label signal after ``step`` steps, at the cost of an evaluation."""
    with state.meter.phase("evaluation"):
        state.evaluations.measure_label_signal(step)


def _is_worth_saving(state: TrainingState) -> bool:
    """Whether to save before an evaluation. All workers come to the same answer.

    One worker does where more would be lost than a notice may lose: it is not asked while detections are scored.
    """
    if not state.experiment.checkpoint.resolved_every(state.experiment.schedule.steps):
        return False
    return ranks.world_size() > 1 or state.seconds_since_checkpoint() >= notice.REPEAT_S


def _save(state: TrainingState, trainer: Trainer, step: int) -> None:
    """Write a checkpoint, unless there is one of this step."""
    if state.saved_step != step:
        state.save(trainer, step)


def progress_fields(state: TrainingState) -> Progress:
    """Fields of a progress report besides step, loss and time."""
    last = state.evaluations.last
    # In every report, not in the one after the evaluation alone: of several workers' reports the newest is passed on.
    known = {} if last is None or last.student.AP is None else {"AP": last.student.AP, "evaluated_step": last.step}
    return {"spent": state.meter.total(), **known}
