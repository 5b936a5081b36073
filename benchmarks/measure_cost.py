"""Measures the costs that predict_cost.py needs, and takes them from the records of trainings that finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.contention import other_load
from benchmarks.measured_costs import (
    Measurement,
    MeasurementFile,
    checkpoints,
    cost_key,
    experiment_in_worker,
    inferences,
    same_shares,
)
from benchmarks.options import per_device
from benchmarks.predict_cost import finished_record, teachers_directory, val_images
from benchmarks.timer_process import TimerProcess, request_all
from benchmarks.timer_spec import Stage, StepTimes, TimerSpec, stages
from lgd.config.experiment import Experiment
from lgd.config.grids import Trial
from lgd.distributed import ray_train
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.results import provenance
from lgd.results.cost_meter import FIRST_STEPS
from lgd.results.record import Record

ROUNDS, STEPS = 3, 8
"""How often each stage is timed, and steps that are timed in a row."""

EVALUATED = 100
"""Images, at most, that an evaluation is measured on."""


def measure_missing(
    trials: Sequence[Trial],
    resources: Resources,
    measurements: MeasurementFile | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
    *,
    again: bool = False,
) -> None:
    """Measure what :func:`predict_cost.predict` lacks for ``trials``; with ``again``, what it has as well.

    As many processes as the sweep will run at once do the same work at the same time, so that each is slowed down by
    the others as it will be in the sweep. on_progress: gets a line before each training that is measured.
    """
    measurements = measurements or MeasurementFile()
    wanted: dict[str, tuple[str, Experiment, dict[Stage, int]]] = {}
    for trial in trials:
        planned = experiment_in_worker(trial.experiment, resources)
        for arm, each in ((trial.arm, planned), (f"{trial.arm}'s teacher", planned.teacher)):
            if each is None:
                continue
            key, needed = cost_key(each, resources), stages(each)
            found = measurements.get(key)
            if again or found is None or found.training(needed) is None:
                wanted.setdefault(key, (arm, each, {}))[2].update(needed)
    if not wanted:
        return
    placement = _placement(resources)
    with ExitStack() as stack:
        processes = [stack.enter_context(TimerProcess(gpu)) for gpu in placement]
        for i, (key, (arm, experiment, needed)) in enumerate(wanted.items()):
            on_progress(f"measuring {arm} ({i + 1} of {len(wanted)})")
            request_all(processes, "build", TimerSpec(per_device(experiment, resources.workers), name=arm))
            with other_load() as load:
                found = _measure(processes, list(needed), val_images(experiment.data), resources.workers)
            found.other_cores = load.cores
            earlier = measurements.get(key)
            if earlier is not None:
                found.steps = earlier.steps | found.steps
            measurements.save(key, found)


def _measure(processes: Sequence[TimerProcess], needed: Sequence[Stage], images: int, workers: int) -> Measurement:
    """images: of an evaluation, of which each of the ``workers`` of a training detects on its part."""
    taken: dict[Stage, list[float]] = {stage: [] for stage in needed}
    first: list[float] = []
    for turn in range(ROUNDS):
        for stage in needed:
            warmup = FIRST_STEPS if turn == 0 else 2
            found: list[StepTimes] = request_all(processes, "time_steps", stage, warmup, STEPS)
            taken[stage].append(fmean(x.mean_ms for x in found) / 1e3)
            first = first or [x.first_s for x in found]
    steps = {str(stage): fmean(times) for stage, times in taken.items()}
    evaluation = request_all(processes, "evaluation", min(images, EVALUATED))
    return Measurement(
        steps=steps,
        first=max(0.0, fmean(first) - FIRST_STEPS * steps[str(needed[0])]),
        setup=fmean(request_all(processes, "setup")),
        evaluation=(fmean(fixed for fixed, _ in evaluation), fmean(image for _, image in evaluation) / workers),
        checkpoint=fmean(request_all(processes, "checkpoint")),
        measured=provenance.now(),
        commit=provenance.git_commit(),
    )


def _placement(resources: Resources) -> list[int | None]:
    """The GPU of every worker process that a sweep runs on this machine at once; None for each one on the CPU.

    Raises InputError, one line, where the sweep's trials train on GPUs and this machine has none.
    """
    wanted = resources.max_concurrent * resources.workers
    if not resources.gpus:
        return [None] * min(wanted, max(1, ray_train.cores() // resources.cpus))
    gpus = torch.cuda.device_count()
    if not gpus:
        raise InputError("--measure: trials train on GPUs, and this machine has none: measure on a node that has one")
    each = math.floor(1 / resources.gpus + 1e-9)
    return [i // each for i in range(min(wanted, each * gpus))]


def update_from_records(
    trials: Iterable[Trial], resources: Resources, measurements: MeasurementFile | None = None
) -> None:
    """Keep the costs of those trainings of ``trials``, and of their teachers, that finished with these resources on
    hardware like this machine's.

    Of several with the same cost key, their mean.
    """
    measurements = measurements or MeasurementFile()
    runs: dict[Path, Experiment] = {}
    for trial in trials:
        record, planned = finished_record(trial.directory), experiment_in_worker(trial.experiment, resources)
        if record is not None:
            runs[trial.directory] = planned
            if planned.teacher is not None and record.pretraining is not None:
                runs[teachers_directory(trial) / record.pretraining.fingerprint] = planned.teacher
    measured: dict[str, list[Measurement]] = {}
    for directory, planned in runs.items():
        record = finished_record(directory)
        if record is not None and record.steps > 2 * FIRST_STEPS and _ran_so(record, resources):
            measured.setdefault(cost_key(planned, resources), []).append(_measurement_of(record, planned))
    for key, found in measured.items():
        earlier = measurements.get(key)
        measurements.save(key, _mean(found, earlier.steps if earlier else {}))


def _ran_so(record: Record, resources: Resources) -> bool:
    """Whether it ran through, on hardware like this machine's and as much of its devices.

    On a cluster, or in an earlier command that trained its teacher, it may not have.
    """
    here, seconds = provenance.hardware(), record.seconds.get("training", 0.0)
    like = all(record.hardware.get(x) == here[x] for x in ("cpu", "cores"))
    if resources.gpus:
        # A worker sees the GPU that it holds, this process all of them.
        like &= _model(record.hardware.get("gpu", "")) == _model(here["gpu"])
    share = record.device_seconds.get("training", 0.0) / seconds if seconds else 0.0
    return record.attempts == 1 and like and math.isclose(share, resources.devices, rel_tol=0.02)


def _model(gpu: str) -> str:
    """A GPU's model and memory, of a text that begins with how many there are."""
    return gpu.partition(" x ")[2]


def _measurement_of(record: Record, planned: Experiment) -> Measurement:
    first, parts = record.within_training.get("first_steps", 0.0), stages(planned)
    step = (record.seconds["training"] - first) / (record.steps - FIRST_STEPS)
    return Measurement(
        whole=step,
        shares={str(stage): steps / sum(parts.values()) for stage, steps in parts.items()},
        first=max(0.0, first - FIRST_STEPS * step),
        setup=record.seconds["setup"],
        evaluation=(0.0, record.seconds["evaluation"] / (inferences(planned) * val_images(planned.data))),
        checkpoint=record.seconds.get("checkpoint", 0.0) / max(1, checkpoints(planned)),
        measured=record.finished,
        commit=record.git_commit,
    )


def _mean(found: Sequence[Measurement], steps: dict[str, float]) -> Measurement:
    """Mean of what trainings with one cost key took; the mean step is of those with the last one's schedule."""
    last = found[-1]
    return Measurement(
        steps=steps,
        whole=fmean(x.whole for x in found if same_shares(x.shares, last.shares)),
        shares=last.shares,
        first=fmean(x.first for x in found),
        setup=fmean(x.setup for x in found),
        evaluation=(0.0, fmean(x.evaluation[1] for x in found)),
        checkpoint=fmean(x.checkpoint for x in found),
        measured=last.measured,
        commit=last.commit,
    )
