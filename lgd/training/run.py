"""One training: from an Experiment to a Record, through detectron2's trainer and hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from torch import nn

from lgd.config.base_method import DistillationMethod
from lgd.config.experiment import Experiment
from lgd.config.phases import WatchedPhases
from lgd.data.dataset import check_objects
from lgd.data.epochs import resolve_epochs
from lgd.data.loaders import train_loader
from lgd.detectors.model_layout import bottom_up_of, predicts_masks
from lgd.distributed import ranks
from lgd.errors import InputError
from lgd.evaluation.evaluate import check_masks
from lgd.files import DiskFullError, remove_temporary_files
from lgd.logs import quiet_libraries
from lgd.methods.distiller import student_of, trained_detectors
from lgd.methods.phases import FreezeBackbone, FreezeDistance, ReadTeacherWatch
from lgd.methods.teacher_watch import read_period
from lgd.results import provenance
from lgd.results.cost_meter import (
    HEARTBEAT_FILE,
    CostMeter,
    CostSoFar,
    Heartbeat,
    gpu_energy,
    read_heartbeat,
)
from lgd.results.peak_memory import reset_peak_memory
from lgd.results.record import Pretraining, Record
from lgd.training import checkpoint, writers
from lgd.training.build import Built, build
from lgd.training.device import process_settings, resolve_device
from lgd.training.disk_space import check_disk_space, files_size
from lgd.training.evaluate_and_report import evaluate_and_report, measure_label_signal, progress_fields
from lgd.training.evaluations import Evaluations
from lgd.training.export import TEACHER_FILE, describe_student, export_student, export_teacher
from lgd.training.hooks import (
    EvaluatePeriodically,
    MeasureLabelSignal,
    ReportProgress,
    RestoreHistory,
    SaveAndStop,
    StepTimes,
    WritePeriodically,
    curves,
)
from lgd.training.own_shares import check_norms
from lgd.training.progress import Progress, Stopped
from lgd.training.state import TrainingState
from lgd.training.teacher_gate import TeacherGateError
from lgd.training.trainer import DivergedError, Trainer, write_period

__all__ = ["Progress", "Stopped", "TrainedTeacher", "error_reason", "failed_record", "run"]


@dataclass(frozen=True)
class TrainedTeacher:
    """A frozen teacher: what its training cost, and the ``student.pth`` with its weights (None: they are given)."""

    pretraining: Pretraining
    weights: Path | None


def run(
    experiment: Experiment,
    directory: Path,
    *,
    teacher: TrainedTeacher | None = None,
    grid: str = "",
    preset: str = "",
    arm: str = "",
    overrides: Sequence[str] = (),
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    share: float = 1.0,
) -> Record:
    """Train, evaluate, export the student (see lgd/training/export.py) and save ``directory/record.json``.

    Goes on from the directory's last checkpoint where there is one. All workers of a distributed training call it with
    the same arguments; the main process writes. A notice (lgd/distributed/notice.py) writes a checkpoint.

    teacher: the frozen teacher that ``experiment.teacher`` describes (see :func:`lgd.training.teacher.
    train_with_teacher`, which trains it first). grid, preset, arm, overrides: for the record. on_progress: called about
    once a second, and after each evaluation. should_stop: called after each step (with several workers after every few:
    :class:`lgd.training.hooks.SaveAndStop`) and, by one worker, after each image of an evaluation; True writes a
    checkpoint and raises Stopped. share: the part of its device that each worker holds.

    A loss that becomes infinite or NaN ends the training with a record that says so. Any other error is raised (see
    :func:`failed_record` for its record); a full disk as DiskFullError, which says what is safe.
    """
    experiment = resolve_epochs(experiment)
    if (teacher is None) is experiment.needs_teacher:
        raise ValueError(f"method {experiment.method.name} needs {'no' if teacher else 'a'} frozen teacher")
    # At the start: the working tree may change while the training runs.
    started, commit = provenance.now(), provenance.git_commit()
    with _convert_disk_full_error(directory):
        state, result = _attempt(experiment, directory, teacher, commit, share, on_progress, should_stop)
        record = Record(
            grid=grid,
            preset=preset,
            arm=arm,
            overrides=list(overrides),
            pretraining=teacher.pretraining if teacher else None,
            started=started,
            finished=provenance.now(),
            **_fields(state, result),
        )
        if ranks.is_main_process():
            record.save(directory)
    if ranks.is_main_process():
        checkpoint.remove(directory)
        # The next training in this directory counts from zero.
        (directory / HEARTBEAT_FILE).unlink(missing_ok=True)
    return record


@contextmanager
def _convert_disk_full_error(directory: Path) -> Iterator[None]:
    """Raise what a full disk causes as DiskFullError, with a note on the last checkpoint."""
    try:
        yield
    except OSError as error:
        full = error if isinstance(error, DiskFullError) else DiskFullError.of(error, directory)
        if full is None:
            raise
        step = checkpoint.last_step(directory)
        note = "no checkpoint was written yet"
        if step is not None:
            note = f"the checkpoint after step {step} is complete, and the same command goes on from it"
        raise full.with_note(note) from None


@dataclass(frozen=True)
class _TrainResult:
    """How the steps of a training went."""

    diverged: str
    """Why it diverged; "" if it did not."""
    steps: int
    """Steps done."""
    trainer: Trainer


def _attempt(
    experiment: Experiment,
    directory: Path,
    teacher: TrainedTeacher | None,
    commit: str,
    share: float,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> tuple[TrainingState, _TrainResult]:
    """Build, train from the last checkpoint on, evaluate, export, under the cost meter."""
    # An error of one worker is raised on all, which would otherwise wait for it.
    device = ranks.run_on_all_ranks(lambda: _device(experiment))
    meter = CostMeter(ranks.world_size() * share, energy=gpu_energy(device, share))
    with ExitStack() as stack:
        stack.enter_context(meter.phase("setup"))
        # It takes tenths of a second, which the training holds its device.
        reset_peak_memory()
        stack.enter_context(process_settings(experiment))
        heartbeat = Heartbeat(meter, directory, experiment.model_dump_json())
        if ranks.is_main_process():
            stack.enter_context(heartbeat)
        built = ranks.run_on_all_ranks(lambda: _build(experiment, teacher, directory))
        spent = ranks.broadcast(heartbeat.previous_cost(built.fingerprint))
        state = _initial_state(built, experiment, directory, commit, meter)
        stack.enter_context(state.writer)
        state.restore()
        if ranks.is_main_process():
            heartbeat.begin_training(built.fingerprint, lambda: state.add_earlier_cost(spent))
        else:
            state.add_earlier_cost(spent)
        result = _train(state, on_progress, should_stop)
        if not result.diverged:
            evaluate_and_report(state, result.trainer, experiment.schedule.steps, on_progress, should_stop)
            if ranks.is_main_process():
                export_student(built.model, directory / "student.pth")
                if experiment.method.keeps_teacher:
                    export_teacher(built.model, directory / TEACHER_FILE)
                layout = built.dataset.layout
                describe_student(built.model, experiment, layout.class_names, directory, layout.category_ids)
    return state, result


def _device(experiment: Experiment) -> torch.device:
    """The device. Raises InputError where it, or a service that the experiment logs to, is not available."""
    writers.check(experiment)
    return resolve_device(experiment)


def _build(experiment: Experiment, teacher: TrainedTeacher | None, directory: Path) -> Built:
    """Build the training and make its directory. Raises InputError for what cannot be trained."""
    built = build(experiment, teacher=teacher.weights if teacher else None)
    check_objects(built.dataset)
    check_norms(built.model)
    if predicts_masks(student_of(built.model)):
        check_masks(built.dataset)
    if ranks.is_main_process():
        check_disk_space(directory, files_size(experiment, built.model, built.optimizer).total)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made ({error.strerror})") from None
    if ranks.is_main_process():
        for place in (directory, directory / checkpoint.DIRECTORY):
            remove_temporary_files(place)
    return built


def _initial_state(
    built: Built, experiment: Experiment, directory: Path, commit: str, meter: CostMeter
) -> TrainingState:
    times = StepTimes(write_period(experiment.schedule.steps), meter)
    return TrainingState(built, experiment, directory, commit, meter, times, Evaluations(built, experiment, directory))


def _train(
    state: TrainingState, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
) -> _TrainResult:
    """Train to the last step, or until the losses diverge."""
    built, steps = state.built, state.experiment.schedule.steps
    for detector in trained_detectors(built.model):
        ranks.sync_loss_normalizer(detector)
    trainer = Trainer(built.model, _loader(state), built.optimizer, state.experiment, built.device, state.meter)
    state.restore_random(trainer)
    trainer.register_hooks([RestoreHistory(state.losses), *_hooks(state, trainer, on_progress, should_stop)])
    try:
        with state.meter.phase("training"), state.cpu.measure(), quiet_libraries():
            trainer.train(state.start, steps)
    except FloatingPointError as error:
        if ranks.world_size() > 1 and not isinstance(error, DivergedError):
            # A detector's own check, on this worker alone: the others wait for it, until Ray ends them for this error.
            said = " ".join(str(error).split())
            raise InputError(f"training diverged on one worker ({said}): try a lower schedule.lr_per_16") from error
        return _TrainResult(" ".join(str(error).split()), trainer.iter, trainer)
    if not all(torch.isfinite(p).all() for p in student_of(built.model).parameters()):
        # The losses of the last steps are not read when there are fewer than a period of them.
        return _TrainResult("the student's weights became infinite or NaN in the last steps", steps, trainer)
    return _TrainResult("", steps, trainer)


def _loader(state: TrainingState) -> Any:
    data, schedule = state.experiment.data, state.experiment.schedule
    return train_loader(
        state.built.dataset,
        batch_size=schedule.batch // schedule.accumulate,
        min_sizes=data.min_sizes,
        max_size=data.max_size,
        flip=data.flip,
        masks=predicts_masks(student_of(state.built.model)),
        seed=state.experiment.seed,
        workers=data.workers,
        cuda=state.built.device.type == "cuda",
        start=state.start * schedule.batch,
        fraction=data.train_fraction,
    )


def _hooks(
    state: TrainingState, trainer: Trainer, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
) -> list[HookBase | None]:
    built, experiment = state.built, state.experiment
    schedule = experiment.schedule
    every = experiment.evaluation.resolved_every(schedule.steps)
    period, phases = write_period(schedule.steps), experiment.method.phases(schedule)
    event_writers = ranks.run_on_all_ranks(
        # Without a step left they would write their last line again.
        lambda: (
            writers.writers(experiment, state.directory, state.start, goes_on=state.meter.attempts > 1)
            if ranks.is_main_process() and state.start < schedule.steps
            else []
        )
    )
    return [
        hooks.IterationTimer(),
        # Before the hooks whose work after a step is not part of the step's time.
        state.times,
        FreezeBackbone(bottom_up_of(student_of(built.model), experiment.detector), phases)
        if phases.frozen_until
        else None,
        FreezeDistance.of(built.model),
        ReadTeacherWatch(state.watch, read_period(schedule.steps)) if state.watch else None,
        hooks.LRScheduler(built.optimizer, built.scheduler),
        WritePeriodically(event_writers, period=period) if event_writers else None,
        ReportProgress(on_progress, lambda: progress_fields(state)),
        MeasureLabelSignal(lambda step: measure_label_signal(state, step), every or schedule.steps)
        if ranks.is_main_process() and state.evaluations.measures_label_signal()
        else None,
        EvaluatePeriodically(lambda step: evaluate_and_report(state, trainer, step, on_progress, should_stop), every)
        if every
        else None,
        SaveAndStop(
            lambda step: state.save(trainer, step),
            experiment.checkpoint.resolved_every(schedule.steps),
            should_stop,
            period,
            state.writer.wait,
        ),
    ]


def _fields(state: TrainingState, result: _TrainResult) -> dict[str, Any]:
    """Fields of the Record: experiment, result, costs and provenance. All workers must call it."""
    model, student = state.built.model, student_of(state.built.model)
    last = None if result.diverged else state.evaluations.last
    return {
        "status": "diverged" if result.diverged else "finished",
        "reason": result.diverged,
        "steps": result.steps,
        "losses": curves(result.trainer.storage),
        "experiment": state.experiment,
        "fingerprint": state.built.fingerprint,
        "data": state.built.dataset.summary(),
        "weights": state.built.weights,
        "parameters": {"student": _count(student), "teacher": _count(model) - _count(student)},
        "student": last.student if last else None,
        "teacher": last.teacher if last else None,
        "student_mask": last.student_mask if last else None,
        "teacher_mask": last.teacher_mask if last else None,
        "evaluations": state.evaluations.points,
        "label_signal": state.evaluations.label_signal,
        "teacher_lead": state.watch.curve() if state.watch else [],
        "distilled": _distilled(state, result.steps),
        **state.totals(),
        "nodes": ranks.node_count(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "git_commit": state.commit,
    }


def _distilled(state: TrainingState, steps: int) -> list[tuple[int, int]]:
    """First and last step, counted from 1, of each time that the distillation loss reached the student."""
    method = state.experiment.method
    weight = method.distill_weight if isinstance(method, DistillationMethod) else 1.0
    if not (method.has_distillation and weight):
        return []
    phases = method.phases(state.experiment.schedule)
    if isinstance(phases, WatchedPhases) and state.watch is not None:
        return phases.clipped(state.watch.periods, steps)
    return phases.clipped([(1, steps)], steps)


def error_reason(error: Exception) -> str:
    """``error`` as the reason in a record."""
    return str(error) if isinstance(error, (DiskFullError, TeacherGateError)) else f"{type(error).__name__}: {error}"


def failed_record(
    experiment: Experiment,
    reason: str,
    *,
    grid: str = "",
    preset: str = "",
    arm: str = "",
    overrides: Sequence[str] = (),
    started: str = "",
    directory: Path | None = None,
) -> Record:
    """The record of a training that an error ended. It is not saved.

    directory: the training's, from whose heartbeat file its cost is read.
    """
    spent = read_heartbeat(directory) if directory else CostSoFar()
    return Record(
        status="failed",
        reason=" ".join(reason.split()) or "unknown error",
        grid=grid,
        preset=preset,
        arm=arm,
        experiment=experiment,
        overrides=list(overrides),
        device_seconds={"lost": spent.device_seconds} if spent.attempts else {},
        joules={"lost": spent.joules} if spent.joules else {},
        attempts=max(1, spent.attempts),
        devices=max(1, round(spent.held[1])),
        fewest_devices=None if spent.held[0] == spent.held[1] else max(1, round(spent.held[0])),
        versions=provenance.versions(),
        hardware=provenance.hardware(),
        git_commit=provenance.git_commit(),
        started=started,
        finished=provenance.now(),
    )


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
