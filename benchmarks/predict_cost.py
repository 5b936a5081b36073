"""Predicts what a sweep costs before it runs, from steps that were measured on this machine.

A training is its set-up, its steps, its checkpoints and its evaluations. Each is measured (measure_cost.py) as the
sweep will run it: through the real loader, on as many threads or as much of a GPU, with as many trainings beside it; or
taken from trainings that finished.

The last trials of a sweep have fewer beside them than was measured, and may be faster. A worker of a trial that has
several is measured alone, with its share of the batch: exchanging gradients is not included.
"""

from __future__ import annotations

import heapq
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.contention import BUSY
from benchmarks.measured_costs import (
    Measurement,
    MeasurementFile,
    checkpoints,
    cost_key,
    experiment_in_worker,
    inferences,
)
from benchmarks.timer_spec import stages
from lgd.cli import format_duration
from lgd.config.experiment import Data, Experiment
from lgd.config.grids import Trial
from lgd.data.catalog import load_dataset
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.results import provenance
from lgd.results.record import FILE, Record, load
from lgd.training import teacher as teacher_training

RAY_START_S, RAY_WAVE_S, RAY_TRIAL_S = 6.0, 10.0, 0.5
"""Wall-clock seconds: Ray's start and end, the start of a wave's worker processes, the start of a trial in one."""

TEACHER = "teacher"
"""Arm of a frozen teacher's training."""

WIDTH = 96
"""Columns of a line."""


@dataclass(frozen=True)
class Row:
    """Seconds of a trial, or of a frozen teacher's training (``arm`` teacher), by the phases of the cost meter."""

    name: str
    arm: str
    seconds: dict[str, float]
    other_cores: float = 0.0
    """Load of other processes while its steps were measured, in CPU cores."""

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of a sweep."""

    rows: list[Row]
    """Trials and teachers that could be predicted."""
    missing: list[str]
    """Arms that could not, since they were not measured."""
    devices: float
    """That a trial is charged for (see lgd/results/cost_meter.py)."""
    gpus: float
    """Of each of them; 0 for the CPU."""
    wall_seconds: float

    @property
    def device_seconds(self) -> float:
        return self.devices * sum(row.total for row in self.rows)

    @property
    def gpu_hours(self) -> float:
        """Device-hours where there is no GPU."""
        return self.device_seconds / 3600

    def price(self, per_gpu_hour: float) -> float:
        """Trials that share a GPU pay for their part of it."""
        return self.gpu_hours * per_gpu_hour

    def lines(self, per_gpu_hour: float | None = None) -> list[str]:
        """For the terminal, each at most WIDTH columns: the cost, with what is missing from it, and how sure it is."""
        arms = dict.fromkeys(row.arm for row in self.rows if row.arm != TEACHER)
        predicted = [arm for arm in arms if arm not in self.missing]
        missing = f"not measured on this machine yet: {', '.join(self.missing)}; --measure measures them"
        if not self.rows:
            return _wrapped(f"no prediction, {missing}") if self.missing else []
        unit = "GPU-hours" if self.gpus else "device-hours on the CPU"
        cost = "" if per_gpu_hour is None else f", at {per_gpu_hour:g} an hour {self.price(per_gpu_hour):.2f}"
        text = f"{self.gpu_hours:.3g} {unit}, {format_duration(self.wall_seconds)} wall clock{cost}"
        if self.missing:
            of = f"{len(predicted)} of {len(predicted) + len(self.missing)} arms"
            text = f"predicted for {of} only: {text}; {missing}"
        else:
            text = f"predicted: {text}"
        return [*_wrapped(text), *self._contention()]

    def _contention(self) -> list[str]:
        cores = int(provenance.hardware()["cores"])
        found = {row.arm: row.other_cores for row in self.rows if row.other_cores > BUSY * cores}
        if not found:
            return []
        return _wrapped(
            f"probably too much: while {', '.join(found)} {'was' if len(found) == 1 else 'were'} measured, other"
            f" processes used up to {max(found.values()):.1f} of {cores} cores"
        )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def predict(trials: Sequence[Trial], resources: Resources, measurements: MeasurementFile | None = None) -> Prediction:
    """The cost of running ``trials``, as far as there are measurements.

    As in the sweep, each frozen teacher is trained once, before the trials that use it, unless the results directory
    has it already.
    """
    measurements = measurements or MeasurementFile()
    waves: tuple[list[Row], list[Row]] = [], []
    missing: dict[str, None] = {}
    teachers: dict[str, Row | None] = {}
    for trial in trials:
        planned = experiment_in_worker(trial.experiment, resources)
        row, teacher = _row(trial.name, trial.arm, planned, resources, measurements), planned.teacher
        if teacher is not None:
            name = teacher.model_dump_json()
            if name not in teachers:
                teachers[name] = _teacher_row(teacher, trial, resources, measurements)
            if teachers[name] is None:
                row = None
        if row is None:
            missing[trial.arm] = None
        else:
            waves[planned.needs_teacher].append(row)
    # A teacher counts if a trial in the prediction uses it; one without seconds is trained already.
    waves[0][:0] = [x for x in teachers.values() if x is not None and x.seconds and waves[1]]
    wall = RAY_START_S + sum(RAY_WAVE_S + _makespan(wave, resources.max_concurrent) for wave in waves if wave)
    rows = [*waves[0], *waves[1]]
    return Prediction(rows, list(missing), resources.devices, resources.gpus, wall if rows else 0.0)


def _row(
    name: str, arm: str, experiment: Experiment, resources: Resources, measurements: MeasurementFile
) -> Row | None:
    found = measurements.get(cost_key(experiment, resources))
    training = None if found is None else found.training(stages(experiment))
    if found is None or training is None:
        return None
    return Row(name, arm, _seconds(experiment, found, training), found.other_cores)


def _seconds(experiment: Experiment, found: Measurement, training: float) -> dict[str, float]:
    fixed, image = found.evaluation
    return {
        "setup": found.setup,
        "training": training,
        "evaluation": inferences(experiment) * (fixed + image * val_images(experiment.data)),
        "checkpoint": checkpoints(experiment) * found.checkpoint,
    }


def _teacher_row(teacher: Experiment, trial: Trial, resources: Resources, measurements: MeasurementFile) -> Row | None:
    home = teacher_training.teacher_directory(teacher, teachers_directory(trial))
    if finished_record(home) is not None:
        return Row(home.name, TEACHER, {})
    return _row(home.name, TEACHER, teacher, resources, measurements)


def _makespan(wave: Sequence[Row], max_concurrent: int) -> float:
    """Seconds until all have ended, if each starts as soon as one before it makes room."""
    free = [0.0] * max_concurrent
    for row in wave:
        heapq.heapreplace(free, free[0] + row.total + RAY_TRIAL_S)
    return max(free)


@cache
def val_images(data: Data) -> int:
    """Number of images of the validation split."""
    return int(load_dataset(data).counts.val.images)


def teachers_directory(trial: Trial) -> Path:
    """Where a sweep keeps its frozen teachers."""
    return trial.directory.parent.parent / "teachers"


def finished_record(directory: Path) -> Record | None:
    """The record of a training that finished there; None if there is none that can be read."""
    path = directory / FILE
    found = None
    with suppress(InputError):
        found = load(path) if path.exists() else None
    return found if found is not None and found.status == "finished" else None
