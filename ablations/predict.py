"""What a sweep will cost, before it runs: from steps that were measured on this machine.

A training is its set-up, its steps, its checkpoints and its evaluations. Each is measured (:func:`measure_missing`) as
the sweep will have it: through the real loader, on as many threads or as much of a GPU, with as many others running
beside it; or learnt from trainings that finished (:func:`learn`). What was measured counts for every training with the
same *cost key*: the settings that change what a step takes, the hardware, torch's version, and the sweep's resources.

A trial on several GPUs is measured on one, with its share of the batch: exchanging gradients is not in the figure.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ablations.display import clock
from ablations.grids import Trial
from benchmarks.options import share_of
from benchmarks.worker import Job, Stage, Stretch, Worker, all_ask, stages
from lgd import provenance
from lgd.data.shapes import cache_root
from lgd.experiment import Experiment, settings
from lgd.files import write_text
from lgd.meter import FIRST_STEPS
from lgd.record import FILE, load
from lgd.train import build, dataset_of, now

if TYPE_CHECKING:
    from ablations.sweep import Resources

SCHEMA = 1

RAY_START_S, RAY_TRIAL_S = 6.0, 0.5
"""Wall-clock seconds that Ray takes to come and go, and between two trials."""

ROUNDS, STEPS = 3, 8
"""Stretches of each stage, and the steps that each times."""

EVALUATED = 100
"""Images, at most, that an evaluation is measured on."""

SHARES_ALIKE = 0.01
"""How far the stages' shares of two schedules may differ for one's mean step to be the other's."""

UNRELATED = (
    "seed",
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


@dataclass
class Measurement:
    """Seconds. steps: a step by stage. whole: a step of a training that finished, with its stages' ``shares``.

    first: what the first steps take beyond as many others. evaluation: fixed part, and of an image. start: of the
    worker process, until it can build anything.
    """

    steps: dict[str, float] = field(default_factory=dict)
    whole: dict[str, Any] | None = None
    first: float = 0.0
    setup: float = 0.0
    evaluation: tuple[float, float] = (0.0, 0.0)
    checkpoint: float = 0.0
    start: float = 0.0
    measured: str = ""
    commit: str = ""

    def training(self, planned: dict[Stage, int]) -> float | None:
        """Of all steps; None where a stage is not known."""
        total = sum(planned.values())
        shares = {str(stage): steps / total for stage, steps in planned.items()}
        if self.whole is not None and _alike(self.whole["shares"], shares):
            return float(self.whole["step"]) * total + self.first
        if any(str(stage) not in self.steps for stage in planned):
            return None
        return sum(steps * self.steps[str(stage)] for stage, steps in planned.items()) + self.first


class Store:
    """This machine's measurements by cost key, in ``path`` (default: measurements.json in the cache directory)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_root() / "measurements.json"

    def get(self, key: str) -> Measurement | None:
        found = self._read().get(key)
        return None if found is None else Measurement(**found)

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
    """Seconds of a trial, or of a frozen teacher's training (``arm`` teacher), by phase as in lgd/meter.py."""

    name: str
    arm: str
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Prediction:
    """rows: trials and teachers that could be predicted. missing: arms that could not, for want of a measurement.

    devices: what a trial holds: GPUs (a share of one counts as such), or one worker process on the CPU.
    """

    rows: list[Row]
    missing: list[str]
    devices: float
    wall_seconds: float
    on_gpu: bool

    @property
    def device_seconds(self) -> float:
        return self.devices * sum(row.total for row in self.rows)

    @property
    def gpu_hours(self) -> float:
        """Device-hours where there is no GPU."""
        return self.device_seconds / 3600

    def price(self, per_gpu_hour: float) -> float:
        return self.gpu_hours * per_gpu_hour

    def lines(self, per_gpu_hour: float | None = None) -> list[str]:
        """What a person should read."""
        said = []
        if self.rows:
            unit = "GPU-hours" if self.on_gpu else "device-hours on the CPU"
            cost = "" if per_gpu_hour is None else f", at {per_gpu_hour:g} an hour {self.price(per_gpu_hour):.2f}"
            said.append(f"predicted: {self.gpu_hours:.3g} {unit}, {clock(self.wall_seconds)} wall clock{cost}")
        if self.missing:
            rest = " (not in the prediction)" if self.rows else ""
            said.append(f"not measured on this machine yet: {', '.join(self.missing)}{rest}; --measure does it")
        return said


def predict(
    trials: Sequence[Trial], resources: Resources, store: Store | None = None, teachers: Path | None = None
) -> Prediction:
    """What running ``trials`` takes, as far as there are measurements.

    A teacher that several trials rest on is trained once, by the first of them while the others wait; one that lies
    trained in ``teachers`` (default: ``teachers`` beside the trials' directories) costs nothing any more.
    """
    store = store or Store()
    rows, missing = [], []
    begun = [0.0] * resources.side_by_side
    trained: dict[str, float] = {}
    start = 0.0
    for trial in trials:
        planned = as_run(trial.experiment, resources)
        teacher, home = planned.teacher, teachers or trial.directory.parent / "teachers"
        own = _row(trial.name, trial.arm, planned, resources, store)
        name = "" if teacher is None else teacher.model_dump_json()
        before: Row | None = None
        if teacher is not None and name not in trained and not _there(teacher, home):
            before = _row("teacher", "teacher", teacher, resources, store)
            if before is None:
                own = None
        if own is None:
            missing.append(trial.arm)
            continue
        now_free = heapq.heappop(begun)
        at = max(now_free, trained.get(name, 0.0)) if name else now_free
        if before is not None:
            at += before.total
            rows.append(before)
        if name:
            trained.setdefault(name, at)
        heapq.heappush(begun, at + own.total + RAY_TRIAL_S)
        rows.append(own)
        found = store.get(cost_key(planned, resources))
        start = max(start, found.start if found else 0.0)
    wall = RAY_START_S + start + max(begun) if rows else 0.0
    return Prediction(rows, list(dict.fromkeys(missing)), resources.gpus or 1.0, wall, resources.gpus > 0)


def measure_missing(
    trials: Sequence[Trial],
    resources: Resources,
    store: Store | None = None,
    tell: Callable[[str], None] = lambda _: None,
    *,
    again: bool = False,
) -> None:
    """Measure whatever :func:`predict` lacks for ``trials``; with ``again``, what it has as well.

    As many processes as the sweep will have side by side do the same at the same time, so each is held up by the
    others as it will be then. tell: told about each training that is measured next.
    """
    store = store or Store()
    wanted: dict[str, tuple[str, Experiment, set[Stage]]] = {}
    for trial in trials:
        planned = as_run(trial.experiment, resources)
        for arm, each in ((trial.arm, planned), (f"{trial.arm}'s teacher", planned.teacher)):
            if each is None:
                continue
            key, needed = cost_key(each, resources), stages(each)
            found = store.get(key)
            if again or found is None or found.training(needed) is None:
                wanted.setdefault(key, (arm, each, set()))[2].update(needed)
    if not wanted:
        return
    devices = max(1, int(resources.gpus))
    with ExitStack() as stack:
        begun = time.perf_counter()
        workers = [stack.enter_context(Worker(_gpu(i, resources))) for i in range(resources.side_by_side)]
        all_ask(workers, "ready")
        start = time.perf_counter() - begun
        for i, (key, (arm, experiment, needed)) in enumerate(wanted.items()):
            tell(f"measuring {arm} ({i + 1} of {len(wanted)})")
            all_ask(workers, "build", Job(share_of(experiment, devices), name=arm))
            found = _measured(workers, sorted(needed, key=str), _images(experiment))
            found.start = start
            earlier = store.get(key)
            if earlier is not None:
                found.steps = earlier.steps | found.steps
            store.put(key, found)


def learn(trials: Iterable[Trial], resources: Resources, store: Store | None = None) -> None:
    """Note what the trainings of ``trials`` took that finished, in one go, with these resources."""
    store = store or Store()
    for trial in trials:
        if not (trial.directory / FILE).exists():
            continue
        record = load(trial.directory / FILE)
        steady = record.steps - FIRST_STEPS
        if record.status != "finished" or record.attempts != 1 or steady < FIRST_STEPS:
            continue
        planned = as_run(trial.experiment, resources)
        key = cost_key(planned, resources)
        first = record.within_training.get("first_steps", 0.0)
        step = (record.seconds["training"] - first) / steady
        found = store.get(key) or Measurement()
        total = sum(stages(planned).values())
        found.whole = {
            "step": step,
            "shares": {str(stage): steps / total for stage, steps in stages(planned).items()},
        }
        found.first = max(0.0, first - FIRST_STEPS * step)
        found.setup = record.seconds["setup"]
        images = evaluations(planned) * _images(planned) * (2 if _evaluates_teacher(planned) else 1)
        found.evaluation = (0.0, record.seconds["evaluation"] / images)
        found.checkpoint = record.seconds.get("checkpoint", 0.0) / max(1, checkpoints(planned))
        found.measured, found.commit = record.finished, record.git_commit
        store.put(key, found)


def as_run(experiment: Experiment, resources: Resources) -> Experiment:
    """The experiment with what a sweep's worker settles: threads and device."""
    changes: dict[str, Any] = {"threads": experiment.threads or resources.cpus}
    if experiment.device == "auto":
        changes["device"] = "cuda" if resources.gpus else "cpu"
    return experiment.model_copy(update=changes)


def cost_key(experiment: Experiment, resources: Resources) -> str:
    """Hex digest of all that determines what a step, or an image evaluated, takes."""
    method = experiment.method.name
    described = {
        key: value
        for key, value in settings(experiment).items()
        if not key.startswith(UNRELATED)
        and (
            key == "method.name"
            or not key.startswith("method.")
            or key.startswith("method.fgfi.") == (method == "fgfi")
        )
        and (method != "baseline" or key == "method.name" or not key.startswith("method."))
    }
    hardware, versions = provenance.hardware(), provenance.versions()
    described |= {x: hardware[x] for x in ("cpu", "cores", "gpu")} | {x: versions[x] for x in ("torch", "lgd")}
    described["beside"] = (resources.cpus, resources.gpus, resources.side_by_side)
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
    training = found and found.training(stages(experiment))
    if found is None or training is None:
        return None
    fixed, image = found.evaluation
    scored = evaluations(experiment) * (2 if _evaluates_teacher(experiment) else 1)
    seconds = {
        "setup": found.setup,
        "training": training,
        "evaluation": scored * (fixed + image * _images(experiment)),
        "checkpoint": checkpoints(experiment) * found.checkpoint,
    }
    return Row(name, arm, seconds)


def _measured(workers: Sequence[Worker], needed: Sequence[Stage], images: int) -> Measurement:
    taken: dict[Stage, list[float]] = {stage: [] for stage in needed}
    first: list[float] = []
    for turn in range(ROUNDS):
        for stage in needed:
            drop = FIRST_STEPS if turn == 0 else 2
            found: list[Stretch] = all_ask(workers, "stretch", stage, drop, STEPS)
            taken[stage].append(fmean(x.mean_ms for x in found) / 1e3)
            first = first or [x.first_s for x in found]
    steps = {str(stage): fmean(times) for stage, times in taken.items()}
    parts = all_ask(workers, "evaluation", min(images, EVALUATED))
    return Measurement(
        steps=steps,
        first=max(0.0, fmean(first) - FIRST_STEPS * steps[str(needed[0])]),
        setup=fmean(all_ask(workers, "setup")),
        evaluation=(fmean(x for x, _ in parts), fmean(x for _, x in parts)),
        checkpoint=fmean(all_ask(workers, "checkpoint")),
        measured=now(),
        commit=provenance.git_commit(),
    )


def _evaluates_teacher(experiment: Experiment) -> bool:
    return experiment.evaluation.teacher and experiment.method.name == "lgd"


def _images(experiment: Experiment) -> int:
    """Of the validation split."""
    return int(dataset_of(experiment.data).counts.val.images)


def _gpu(index: int, resources: Resources) -> int | None:
    """Which GPU the trial of that number has, or its first one."""
    return math.floor(index * resources.gpus) if resources.gpus else None


def _there(teacher: Experiment, home: Path) -> bool:
    """Whether a teacher lies trained in ``home``."""
    if not home.is_dir():
        return False
    path = home / build(teacher, pretrained=False).fingerprint / FILE
    return path.exists() and load(path).status == "finished"


def _alike(there: dict[str, float], here: dict[str, float]) -> bool:
    return there.keys() == here.keys() and all(abs(there[x] - here[x]) <= SHARES_ALIKE for x in here)
