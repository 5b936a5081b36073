"""Measured costs of steps, evaluations and checkpoints on this machine, kept in a file for predict_cost.py.

A measurement holds for every training with the same *cost key*: the settings that change what a step costs, the
hardware, torch's version, and the sweep's resources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.timer_spec import Stage
from lgd.cache import cache_root
from lgd.config.experiment import Experiment, settings
from lgd.data.epochs import resolve_epochs
from lgd.distributed.resources import Resources
from lgd.files import write_text
from lgd.results import provenance
from lgd.training.worker import loading_within

SCHEMA = 1

SHARES_TOLERANCE = 0.01
"""How far the stages' shares of two schedules may differ for the mean step of one to be that of the other."""

COST_INDEPENDENT = (
    "seed",
    "log",
    "evaluation.",
    "checkpoint.",
    "data.shapes_train",
    "data.shapes_val",
    "data.shapes_seed",
    "schedule.steps",
    "schedule.epoch",
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
    "method.teacher.steps",
    "method.teacher.seed",
    "method.teacher.hours",
    "method.teacher.gate",
    "method.teacher.floor",
    "method.stage1_",
    "method.peer_seed",
    "method.threshold",
    "method.weight",
    "method.alpha",
    "method.beta",
    "method.gamma",
    "method.relation",
    "method.temperature",
    "method.multiplier",
    "method.ratio",
    "method.inherit",
    "method.from_step",
    "method.until",
    "method.start",
)
"""Prefixes of settings that do not change the cost of a step, or of an image evaluated."""


@dataclass
class Measurement:
    """What the parts of a training take, seconds."""

    steps: dict[str, float] = field(default_factory=dict)
    """Of a step, by stage."""
    whole: float = 0.0
    """Mean step of finished trainings whose stages had these ``shares``."""
    shares: dict[str, float] = field(default_factory=dict)
    first: float = 0.0
    """What the first steps take beyond as many others."""
    setup: float = 0.0
    evaluation: tuple[float, float] = (0.0, 0.0)
    """Fixed part, and part per image."""
    checkpoint: float = 0.0
    other_cores: float = 0.0
    """Mean load of other processes while it was measured, in CPU cores; 0 for the costs of finished trainings."""
    measured: str = ""
    commit: str = ""

    def training(self, planned: dict[Stage, int]) -> float | None:
        """Seconds of all steps of a training; None where a stage was not measured. planned: steps by stage."""
        total = sum(planned.values())
        shares = {str(stage): steps / total for stage, steps in planned.items()}
        if same_shares(self.shares, shares):
            return self.whole * total + self.first
        if any(str(stage) not in self.steps for stage in planned):
            return None
        return sum(steps * self.steps[str(stage)] for stage, steps in planned.items()) + self.first


class MeasurementFile:
    """This machine's measurements by cost key, in ``path`` (default: measurements.json in the cache directory)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_root() / "measurements.json"

    def get(self, key: str) -> Measurement | None:
        with suppress(KeyError, TypeError):
            return Measurement(**self._read()[key])
        return None

    def save(self, key: str, measurement: Measurement) -> None:
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


def same_shares(shares: Mapping[str, float], others: Mapping[str, float]) -> bool:
    """Whether the stages of two schedules have the same shares of the steps."""
    return shares.keys() == others.keys() and all(abs(shares[x] - others[x]) <= SHARES_TOLERANCE for x in others)


def experiment_in_worker(experiment: Experiment, resources: Resources) -> Experiment:
    """The experiment with the steps, threads, loader processes and device that it has in a worker of the sweep."""
    experiment = loading_within(resolve_epochs(experiment), resources.cpus, resources.gpus)
    changes: dict[str, Any] = {"threads": experiment.threads or resources.cpus}
    if experiment.device == "auto":
        changes["device"] = "cuda" if resources.gpus else "cpu"
    return experiment.model_copy(update=changes)


def cost_key(experiment: Experiment, resources: Resources) -> str:
    """Hex digest of all that determines the cost of a step, or of an image evaluated."""
    described = {key: value for key, value in settings(experiment).items() if not key.startswith(COST_INDEPENDENT)}
    hardware, versions = provenance.hardware(), provenance.versions()
    described |= {x: hardware[x] for x in ("cpu", "cores", "gpu")} | {x: versions[x] for x in ("torch", "lgd")}
    described["beside"] = (resources.cpus, resources.gpus, resources.workers, resources.max_concurrent)
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def evaluations(experiment: Experiment) -> int:
    """How often a training evaluates, the end included."""
    return len(experiment.evaluation.resolved_steps(experiment.schedule.steps))


def inferences(experiment: Experiment) -> int:
    """How often a training runs on the validation split: twice an evaluation if the teacher's features are scored."""
    both = experiment.method.has_teacher_ap and experiment.evaluation.scores_teacher
    return evaluations(experiment) * (2 if both else 1)


def checkpoints(experiment: Experiment) -> int:
    """How many checkpoints a training writes."""
    every = experiment.checkpoint.resolved_every(experiment.schedule.steps)
    return (experiment.schedule.steps - 1) // every if every else 0
