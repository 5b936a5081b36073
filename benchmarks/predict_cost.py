"""What a sweep will cost, before it runs: from steps that were measured on this machine.

A training is its set-up, its steps, its checkpoints and its evaluations. Each is measured (:func:`measure_missing`) as
the sweep will have it: through the real loader, on as many threads or as much of a GPU, with as many others running
beside it; or learnt from trainings that finished (:func:`learn`). What was measured counts for every training with the
same *cost key*: the settings that change what a step takes, the hardware, torch's version, and the sweep's resources.

The last trials of a sweep have fewer beside them than was measured, and may be faster. A worker of a trial that has
several is measured alone, with its share of the batch: exchanging gradients is not in the figure.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from ablations.display import clock
from benchmarks.options import share_of
from benchmarks.step_timer import Job, Stage, Stretch, Worker, request_all, stages
from lgd.cache import cache_root
from lgd.config.experiment import Data, Experiment, settings
from lgd.config.grids import Trial
from lgd.data.catalog import load_dataset
from lgd.distributed import ray_train
from lgd.files import write_text
from lgd.results import provenance
from lgd.results.cost_meter import FIRST_STEPS
from lgd.results.record import FILE, Record, load
from lgd.training import teacher as teacher_training
from lgd.training.run import now

if TYPE_CHECKING:
    from ablations.ray_sweep import Resources

SCHEMA = 1

RAY_START_S, RAY_WAVE_S, RAY_TRIAL_S = 6.0, 10.0, 0.5
"""Wall-clock seconds that Ray takes to come and go, a wave of trials to have its worker processes, and a trial to begin
in one."""

TEACHER = "teacher"
"""Arm of a frozen teacher's training."""

ROUNDS, STEPS = 3, 8
"""Stretches of each stage, and the steps that each times."""

EVALUATED = 100
"""Images, at most, that an evaluation is measured on."""

SHARES_ALIKE = 0.01
"""How far the stages' shares of two schedules may differ for one's mean step to be the other's."""

UNRELATED = (
    "seed",
    "log",
    "evaluation.",
    "checkpoint.",
    "data.shapes_train",
    "data.shapes_val",
    "data.shapes_seed",
    "schedule.steps",
    "schedule.lr",
    "schedule.lr_per_16",
    "schedule.weight_decay",
    "schedule.warmup_",
    "schedule.milestones",
    "schedule.gamma",
    "schedule.frozen",
    "schedule.distill_",
    "method.distill_weight",
    "method.instructive_weight",
    "method.lr_factor",
    "method.fgfi.steps",
    "method.fgfi.seed",
    "method.fgfi.threshold",
    "method.fgfi.weight",
    "method.fgfi.from_step",
)
"""Beginnings of settings that leave the cost of a step, or of an image evaluated, as it is."""

OWN = {"baseline": ("method.name",), "lgd": ("method.",), "fgfi": ("method.name", "method.fgfi.")}
"""Beginnings of the settings of a method that it reads."""


@dataclass
class Measurement:
    """Seconds. steps: a step by stage. whole: a step of trainings that finished, whose stages had these ``shares``.

    first: what the first steps take beyond as many others. evaluation: fixed part, and of an image.
    """

    steps: dict[str, float] = field(default_factory=dict)
    whole: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    first: float = 0.0
    setup: float = 0.0
    evaluation: tuple[float, float] = (0.0, 0.0)
    checkpoint: float = 0.0
    measured: str = ""
    commit: str = ""

    def training(self, planned: dict[Stage, int]) -> float | None:
        """Of all steps; None where a stage is not known."""
        total = sum(planned.values())
        shares = {str(stage): steps / total for stage, steps in planned.items()}
        if _alike(self.shares, shares):
            return self.whole * total + self.first
        if any(str(stage) not in self.steps for stage in planned):
            return None
        return sum(steps * self.steps[str(stage)] for stage, steps in planned.items()) + self.first


class Store:
    """This machine's measurements by cost key, in ``path`` (default: measurements.json in the cache directory)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_root() / "measurements.json"

    def get(self, key: str) -> Measurement | None:
        with suppress(KeyError, TypeError):
            return Measurement(**self._read()[key])
        return None

    def put(self, key: str, measurement: Measurement) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            entries = self._read() | {key: vars(measurement)}
            text = json.dumps({"schema_version": SCHEMA, "measurements": entries}, indent=1)
            write_text(self.path, text + "\n")

    def _read(self) -> dict[str, Any]:
        # A cache: what cannot be read is measured again.
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["schema_version"] == SCHEMA:
                return dict(found["measurements"])
        return {}


@dataclass(frozen=True)
class Row:
    """Seconds of a trial, or of a frozen teacher's training (``arm`` teacher), by phase as in lgd/results/cost_meter.py."""

    name: str
    arm: str
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Prediction:
    """rows: trials and teachers that could be predicted. missing: arms that could not, for want of a measurement.

    devices: that a trial is charged for (see lgd/results/cost_meter.py). gpus: what each of them has of a GPU; 0 for the CPU.
    """

    rows: list[Row]
    missing: list[str]
    devices: float
    gpus: float
    wall_seconds: float

    @property
    def device_seconds(self) -> float:
        return self.devices * sum(row.total for row in self.rows)

    @property
    def gpu_hours(self) -> float:
        """Device-hours where there is no GPU."""
        return self.device_seconds / 3600

    def price(self, per_gpu_hour: float) -> float:
        """At so much for a GPU's hour; those that share one pay for a part."""
        return self.gpu_hours * per_gpu_hour

    def lines(self, per_gpu_hour: float | None = None) -> list[str]:
        """What a person should read."""
        said = []
        if self.rows:
            unit = "GPU-hours" if self.gpus else "device-hours on the CPU"
            cost = "" if per_gpu_hour is None else f", at {per_gpu_hour:g} an hour {self.price(per_gpu_hour):.2f}"
            said.append(f"predicted: {self.gpu_hours:.3g} {unit}, {clock(self.wall_seconds)} wall clock{cost}")
        if self.missing:
            rest = " (not in the prediction)" if self.rows else ""
            said.append(f"not measured on this machine yet: {', '.join(self.missing)}{rest}; --measure does it")
        return said


def predict(trials: Sequence[Trial], resources: Resources, store: Store | None = None) -> Prediction:
    """What running ``trials`` takes, as far as there are measurements.

    Like the sweep, it has each frozen teacher trained once, before what uses it, unless it lies trained in the
    results directory already.
    """
    store = store or Store()
    waves: tuple[list[Row], list[Row]] = [], []
    missing: dict[str, None] = {}
    teachers: dict[str, Row | None] = {}
    for trial in trials:
        planned = as_run(trial.experiment, resources)
        row, teacher = _row(trial.name, trial.arm, planned, resources, store), planned.teacher
        if teacher is not None:
            name = teacher.model_dump_json()
            if name not in teachers:
                teachers[name] = _teacher_row(teacher, trial, resources, store)
            if teachers[name] is None:
                row = None
        if row is None:
            missing[trial.arm] = None
        else:
            waves[teacher is not None].append(row)
    # A teacher counts with those that use it or not at all; one without seconds is there already.
    waves[0][:0] = [x for x in teachers.values() if x is not None and x.seconds and waves[1]]
    wall = RAY_START_S + sum(RAY_WAVE_S + _makespan(wave, resources.max_concurrent) for wave in waves if wave)
    rows = [*waves[0], *waves[1]]
    return Prediction(rows, list(missing), resources.devices, resources.gpus, wall if rows else 0.0)


def _teacher_row(teacher: Experiment, trial: Trial, resources: Resources, store: Store) -> Row | None:
    home = teacher_training.home(teacher, _teachers(trial))
    if _record(home) is not None:
        return Row(home.name, TEACHER, {})
    return _row(home.name, TEACHER, teacher, resources, store)


def _makespan(wave: Sequence[Row], max_concurrent: int) -> float:
    """Seconds until all are through, each beginning as soon as there is room."""
    free = [0.0] * max_concurrent
    for row in wave:
        heapq.heapreplace(free, free[0] + row.total + RAY_TRIAL_S)
    return max(free)


def measure_missing(
    trials: Sequence[Trial],
    resources: Resources,
    store: Store | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
    *,
    again: bool = False,
) -> None:
    """Measure whatever :func:`predict` lacks for ``trials``; with ``again``, what it has as well.

    As many processes as the sweep will have side by side do the same at the same time, so each is held up by the
    others as it will be then. tell: told about each training that is measured next.
    """
    store = store or Store()
    wanted: dict[str, tuple[str, Experiment, dict[Stage, int]]] = {}
    for trial in trials:
        planned = as_run(trial.experiment, resources)
        for arm, each in ((trial.arm, planned), (f"{trial.arm}'s teacher", planned.teacher)):
            if each is None:
                continue
            key, needed = cost_key(each, resources), stages(each)
            found = store.get(key)
            if again or found is None or found.training(needed) is None:
                wanted.setdefault(key, (arm, each, {}))[2].update(needed)
    if not wanted:
        return
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(gpu)) for gpu in _places(resources)]
        for i, (key, (arm, experiment, needed)) in enumerate(wanted.items()):
            on_progress(f"measuring {arm} ({i + 1} of {len(wanted)})")
            request_all(workers, "build", Job(share_of(experiment, resources.workers), name=arm))
            found = _measured(workers, list(needed), _images(experiment.data))
            earlier = store.get(key)
            if earlier is not None:
                found.steps = earlier.steps | found.steps
            store.put(key, found)


def learn(trials: Iterable[Trial], resources: Resources, store: Store | None = None) -> None:
    """Note what the trainings of ``trials``, and of their teachers, took that ran to their end with these resources.

    Of those with the same cost key, the mean.
    """
    store = store or Store()
    runs: dict[Path, Experiment] = {}
    for trial in trials:
        record, planned = _record(trial.directory), as_run(trial.experiment, resources)
        if record is not None:
            runs[trial.directory] = planned
            if planned.teacher is not None and record.pretraining is not None:
                runs[_teachers(trial) / record.pretraining.fingerprint] = planned.teacher
    learnt: dict[str, list[Measurement]] = {}
    for directory, planned in runs.items():
        record = _record(directory)
        if record is not None and record.attempts == 1 and record.steps > 2 * FIRST_STEPS:
            learnt.setdefault(cost_key(planned, resources), []).append(_learnt(record, planned))
    for key, found in learnt.items():
        alike = [x for x in found if _alike(x.shares, found[-1].shares)]
        earlier = store.get(key)
        mean = Measurement(
            steps=earlier.steps if earlier else {},
            whole=fmean(x.whole for x in alike),
            shares=found[-1].shares,
            first=fmean(x.first for x in found),
            setup=fmean(x.setup for x in found),
            evaluation=(0.0, fmean(x.evaluation[1] for x in found)),
            checkpoint=fmean(x.checkpoint for x in found),
            measured=found[-1].measured,
            commit=found[-1].commit,
        )
        store.put(key, mean)


def _learnt(record: Record, planned: Experiment) -> Measurement:
    first, parts = record.within_training.get("first_steps", 0.0), stages(planned)
    step = (record.seconds["training"] - first) / (record.steps - FIRST_STEPS)
    return Measurement(
        whole=step,
        shares={str(stage): steps / sum(parts.values()) for stage, steps in parts.items()},
        first=max(0.0, first - FIRST_STEPS * step),
        setup=record.seconds["setup"],
        evaluation=(0.0, record.seconds["evaluation"] / (_passes(planned) * _images(planned.data))),
        checkpoint=record.seconds.get("checkpoint", 0.0) / max(1, checkpoints(planned)),
        measured=record.finished,
        commit=record.git_commit,
    )


def as_run(experiment: Experiment, resources: Resources) -> Experiment:
    """The experiment with what a sweep's worker settles: threads and device."""
    changes: dict[str, Any] = {"threads": experiment.threads or resources.cpus}
    if experiment.device == "auto":
        changes["device"] = "cuda" if resources.gpus else "cpu"
    return experiment.model_copy(update=changes)


def cost_key(experiment: Experiment, resources: Resources) -> str:
    """Hex digest of all that determines what a step, or an image evaluated, takes."""
    own = OWN[experiment.method.name]
    described = {
        key: value
        for key, value in settings(experiment).items()
        if (key.startswith(own) or not key.startswith("method.")) and not key.startswith(UNRELATED)
    }
    if experiment.method.name == "lgd":
        described = {key: value for key, value in described.items() if not key.startswith("method.fgfi.")}
    hardware, versions = provenance.hardware(), provenance.versions()
    described |= {x: hardware[x] for x in ("cpu", "cores", "gpu")} | {x: versions[x] for x in ("torch", "lgd")}
    described["beside"] = (resources.cpus, resources.gpus, resources.workers, resources.max_concurrent)
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def evaluations(experiment: Experiment) -> int:
    """How often a training evaluates, the end included."""
    every = experiment.evaluation.every
    return 1 + ((experiment.schedule.steps - 1) // every if every else 0)


def checkpoints(experiment: Experiment) -> int:
    """How many checkpoints a training writes."""
    every = experiment.checkpoint.resolved_every(experiment.schedule.steps)
    return (experiment.schedule.steps - 1) // every if every else 0


def _row(name: str, arm: str, experiment: Experiment, resources: Resources, store: Store) -> Row | None:
    found = store.get(cost_key(experiment, resources))
    training = None if found is None else found.training(stages(experiment))
    if found is None or training is None:
        return None
    fixed, image = found.evaluation
    seconds = {
        "setup": found.setup,
        "training": training,
        "evaluation": _passes(experiment) * (fixed + image * _images(experiment.data)),
        "checkpoint": checkpoints(experiment) * found.checkpoint,
    }
    return Row(name, arm, seconds)


def _measured(workers: Sequence[Worker], needed: Sequence[Stage], images: int) -> Measurement:
    taken: dict[Stage, list[float]] = {stage: [] for stage in needed}
    first: list[float] = []
    for turn in range(ROUNDS):
        for stage in needed:
            drop = FIRST_STEPS if turn == 0 else 2
            found: list[Stretch] = request_all(workers, "stretch", stage, drop, STEPS)
            taken[stage].append(fmean(x.mean_ms for x in found) / 1e3)
            first = first or [x.first_s for x in found]
    steps = {str(stage): fmean(times) for stage, times in taken.items()}
    parts = request_all(workers, "evaluation", min(images, EVALUATED))
    return Measurement(
        steps=steps,
        first=max(0.0, fmean(first) - FIRST_STEPS * steps[str(needed[0])]),
        setup=fmean(request_all(workers, "setup")),
        evaluation=(fmean(x for x, _ in parts), fmean(x for _, x in parts)),
        checkpoint=fmean(request_all(workers, "checkpoint")),
        measured=now(),
        commit=provenance.git_commit(),
    )


def _passes(experiment: Experiment) -> int:
    """How often a training detects on the validation split: twice for an evaluation with the teacher's features."""
    both = experiment.evaluation.teacher and experiment.method.name == "lgd"
    return evaluations(experiment) * (2 if both else 1)


@cache
def _images(data: Data) -> int:
    """Of the validation split."""
    return int(load_dataset(data).counts.val.images)


def _places(resources: Resources) -> list[int | None]:
    """The GPU of every worker process that a sweep has on this machine at once, None for each one on the CPU."""
    wanted = resources.max_concurrent * resources.workers
    if not resources.gpus:
        return [None] * min(wanted, max(1, ray_train.cores() // resources.cpus))
    each = math.floor(1 / resources.gpus + 1e-9)
    return [i // each for i in range(min(wanted, each * torch.cuda.device_count()))]


def _teachers(trial: Trial) -> Path:
    """Where a sweep keeps its frozen teachers."""
    return trial.directory.parent.parent / "teachers"


def _record(directory: Path) -> Record | None:
    """Of a training that finished there."""
    path = directory / FILE
    found = load(path) if path.exists() else None
    return found if found is not None and found.status == "finished" else None


def _alike(there: dict[str, float], here: dict[str, float]) -> bool:
    return there.keys() == here.keys() and all(abs(there[x] - here[x]) <= SHARES_ALIKE for x in here)
