"""The record of one run: a versioned schema, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, ValidationError

from lgd.config.experiment import Experiment, Settings, explain
from lgd.errors import InputError
from lgd.files import write_text

SCHEMA = 2
FILE = "record.json"

Curve = list[tuple[int, float]]
"""(step, value) points; a step counts from 1."""


class Scores(Settings):
    """COCO AP in percent, of boxes or of masks.

    mMR: log-average miss rate MR^-2 in percent, lower is better, of boxes where person is the only class. VOC: Pascal
    VOC's own mean AP at IoU 0.5 in percent, of boxes of VOC data (see scoring.py). None where a number is not defined
    (no object of that size or class in the split).
    """

    AP: FiniteFloat | None
    AP50: FiniteFloat | None
    AP75: FiniteFloat | None
    APs: FiniteFloat | None
    APm: FiniteFloat | None
    APl: FiniteFloat | None
    mMR: FiniteFloat | None = None  # noqa: N815  the measure's name
    VOC: FiniteFloat | None = None
    per_class: dict[str, FiniteFloat | None] = Field(default_factory=dict)


class EvaluationPoint(Settings):
    """Scores reached while training, after ``step`` steps (see Record for their names).

    attention: how far the teacher's objects attend to their own label, from 0 (all labels of the image alike) to 1.
    label_use: how far its features follow the objects' classes, from 0 (not at all) to 1 (see lgd/methods/label_guided/label_use.py).
    """

    step: int
    student: Scores
    teacher: Scores | None = None
    student_mask: Scores | None = None
    teacher_mask: Scores | None = None
    attention: float | None = None
    label_use: float | None = None


class Pretraining(Settings):
    """The training of a frozen teacher, which a run with one uses and always answers for.

    fingerprint: of the teacher's training. AP: box AP that it reached, percent. device_seconds: all that it cost, by
    phase (see meter.py). reused: it was there before this run. shared_by: the runs that have used it up to this
    one, itself included.
    """

    fingerprint: str
    backbone: str
    steps: int
    AP: FiniteFloat | None
    device_seconds: dict[str, FiniteFloat]
    joules: dict[str, FiniteFloat] = Field(default_factory=dict)
    reused: bool
    shared_by: Annotated[int, Field(ge=1)] = 1

    @property
    def full(self) -> float:
        """Device-seconds of the whole of it, as if this run were the only one: what the paper's Table 7 counts."""
        return sum(self.device_seconds.values())

    @property
    def amortised(self) -> float:
        """Device-seconds, divided between the runs that share the teacher."""
        return self.full / self.shared_by


class Record(Settings):
    """What ran, where, how it went and what came out.

    status: ``finished``; ``diverged`` (a loss became infinite or NaN); ``failed`` (an error, named in ``reason``);
    ``stopped`` (ended early by a sweep's scheduler, its scores those of the last evaluation).
    fingerprint: hash of the model, optimiser and data as built. student, teacher: of boxes; student_mask, teacher_mask:
    of masks, None for a detector without them. Times are UTC, ISO 8601.
    overrides: settings that a sweep's or a training's command changed, as ``key=value``.

    Costs, defined in meter.py: seconds, device_seconds and joules by phase; within_training: what of the training's
    seconds went on ``waiting`` for data and on the ``first_steps`` after a start; attempts: starts, restarts counted;
    step_ms: median of a step after those, milliseconds; devices: GPUs, or worker processes where there is none; nodes:
    machines; pretraining: a frozen teacher's.
    """

    schema_version: Literal[2] = 2
    status: Literal["finished", "diverged", "failed", "stopped"]
    reason: str = ""
    grid: str = ""
    preset: str = ""
    arm: str = ""
    experiment: Experiment
    fingerprint: str = ""
    data: dict[str, str | int | float] = Field(default_factory=dict)
    parameters: dict[str, int] = Field(default_factory=dict)
    steps: int = 0
    student: Scores | None = None
    teacher: Scores | None = None
    student_mask: Scores | None = None
    teacher_mask: Scores | None = None
    evaluations: list[EvaluationPoint] = Field(default_factory=list)
    losses: dict[str, Curve] = Field(default_factory=dict)
    overrides: list[str] = Field(default_factory=list)
    seconds: dict[str, FiniteFloat] = Field(default_factory=dict)
    within_training: dict[str, FiniteFloat] = Field(default_factory=dict)
    device_seconds: dict[str, FiniteFloat] = Field(default_factory=dict)
    joules: dict[str, FiniteFloat] = Field(default_factory=dict)
    attempts: int = 1
    step_ms: FiniteFloat | None = None
    peak_memory_mib: dict[str, FiniteFloat] = Field(default_factory=dict)
    devices: int = 1
    nodes: int = 1
    pretraining: Pretraining | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str] = Field(default_factory=dict)
    git_commit: str = ""
    started: str = ""
    finished: str = ""

    @property
    def name(self) -> str:
        return f"{self.arm or self.experiment.method.name} seed {self.experiment.seed}"

    @property
    def gpu_hours(self) -> float:
        """Device-hours of this run, all phases, a teacher's pre-training left out."""
        return sum(self.device_seconds.values()) / 3600

    @property
    def waiting(self) -> float | None:
        """The part of the training's seconds that steps stood still for data, from 0 to 1; None without a step."""
        seconds = self.seconds.get("training", 0.0)
        return self.within_training["waiting"] / seconds if seconds and "waiting" in self.within_training else None

    @property
    def watts(self) -> float | None:
        """Mean power of a device while it trained; None where no energy was measured."""
        seconds = self.device_seconds.get("training", 0.0)
        return self.joules["training"] / seconds if seconds and "training" in self.joules else None

    def save(self, directory: Path) -> Path:
        """Write ``record.json`` into ``directory``, atomically."""
        path = directory / FILE
        write_text(path, self.model_dump_json(indent=1) + "\n")
        return path


def load(path: Path) -> Record:
    """Read a record. Raises InputError naming the file, and the line or the field that is wrong."""
    try:
        raw = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not a record ({error})") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets as deep, have no line.
        raise InputError(f"{path}:{getattr(error, 'lineno', 1)}: not a record ({error})") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version == 1:
        raw = _from_1(raw)
    elif version != SCHEMA:
        raise InputError(f"{path}: record schema {version!r} is not known (this version reads 1 to {SCHEMA})")
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from None


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1, whose runs all had one device and one attempt, as one of schema 2."""
    return {**raw, "schema_version": SCHEMA, "device_seconds": raw.get("seconds", {})}
