"""The record of one run: a versioned schema, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from lgd.errors import InputError
from lgd.experiment import Experiment, Settings, explain
from lgd.files import write_text

SCHEMA = 1
FILE = "record.json"

Curve = list[tuple[int, float]]
"""(step, value) points; a step counts from 1."""


class Scores(Settings):
    """COCO AP in percent, of boxes or of masks.

    None where it is not defined (no object of that size or class in the split).
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    per_class: dict[str, float | None] = Field(default_factory=dict)


class EvaluationPoint(Settings):
    """Scores reached while training, after ``step`` steps (see Record for their names)."""

    step: int
    student: Scores
    teacher: Scores | None = None
    student_mask: Scores | None = None
    teacher_mask: Scores | None = None


class Record(Settings):
    """What ran, where, how it went and what came out.

    status: ``finished``; ``diverged`` (a loss became infinite or NaN); ``failed`` (an error, named in ``reason``).
    fingerprint: hash of the model, optimiser and data as built. seconds: by phase (see meter.py). step_ms: median of
    a training step, milliseconds. student, teacher: of boxes; student_mask, teacher_mask: of masks, None for a detector
    without them. peak_memory_mib: see meter.py. Times are UTC, ISO 8601.
    """

    schema_version: Literal[1] = 1
    status: Literal["finished", "diverged", "failed"]
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
    seconds: dict[str, float] = Field(default_factory=dict)
    step_ms: float | None = None
    peak_memory_mib: dict[str, float] = Field(default_factory=dict)
    devices: int = 1
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str] = Field(default_factory=dict)
    git_commit: str = ""
    started: str = ""
    finished: str = ""

    @property
    def name(self) -> str:
        return f"{self.arm or self.experiment.method.name} seed {self.experiment.seed}"

    def save(self, directory: Path) -> Path:
        """Write ``record.json`` into ``directory``, atomically."""
        path = directory / FILE
        write_text(path, self.model_dump_json(indent=1) + "\n")
        return path


def load(path: Path) -> Record:
    """Read a record. Raises InputError naming the file, and the line or the field that is wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", "?")
        raise InputError(f"{path}:{line}: not a record ({error})") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA:
        raise InputError(f"{path}: record schema {version!r} is not known (this version reads {SCHEMA})")
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from None
