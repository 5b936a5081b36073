"""The record of one training: a versioned schema, written atomically."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, computed_field

from lgd.config.base_method import Method
from lgd.config.experiment import Experiment, Settings, explain
from lgd.errors import InputError
from lgd.files import read_file, write_text

SCHEMA = 3
FILE = "record.json"

FINGERPRINT_VERSION = 2
"""Of the rule by which :func:`lgd.results.fingerprint.fingerprint` makes its hash. Raised when that rule changes.

1: classes by module and name, as in records of schema 1 and 2. 2: by top-level package and name.
"""

Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
"""Sums and products of a few such numbers are finite, too."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A whole number that a float and a column of a table hold."""

Text = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")]
"""A name without control characters, which a terminal would act on; tables and figures show it in one line."""


def _left_unread(value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise ValueError("must be true, false or null")


LeftUnread = Annotated[None, BeforeValidator(_left_unread)]
"""What a file says beside what it follows from."""

Curve = list[tuple[Count, float]]
"""(step, value) points; a step counts from 1."""


class Scores(Settings):
    """COCO AP in percent, of boxes or of masks. None where a number is undefined: no such object in the split."""

    AP: Number | None
    """Mean over the IoU thresholds 0.5 to 0.95, percent."""
    AP50: Number | None
    """AP at IoU 0.5, percent."""
    AP75: Number | None
    """AP at IoU 0.75, percent."""
    APs: Number | None
    """AP of small objects, area up to 32² pixels, percent."""
    APm: Number | None
    """AP of medium objects, area 32² to 96² pixels, percent."""
    APl: Number | None
    """AP of large objects, area from 96² pixels, percent."""
    mMR: Number | None = None  # noqa: N815  the measure's name
    """Log-average miss rate MR^-2 in percent, lower is better, of boxes where person is the only class."""
    VOC: Number | None = None
    """Pascal VOC's own mean AP at IoU 0.5 in percent, of boxes of VOC data (see lgd/evaluation/scoring.py)."""
    VOC75: Number | None = None
    """The same at IoU 0.75. None in records from before it was kept, as ``VOC_AP``."""
    VOC_AP: Number | None = None
    """The same, mean over the IoUs 0.5 to 0.95."""
    per_class: dict[str, Number | None] = Field(default_factory=dict)
    """AP by class name, percent; names that repeat have their category's id behind them."""


class EvaluationPoint(Settings):
    """The scores after ``step`` training steps (see Record for their names)."""

    step: Count
    """Training steps that were done."""
    student: Scores
    """Of the student's boxes."""
    teacher: Scores | None = None
    """Of the instructive features' boxes; None where they were not evaluated."""
    student_mask: Scores | None = None
    """Of the student's masks; None for a detector without masks."""
    teacher_mask: Scores | None = None
    """Of the instructive features' masks; None where there are none."""
    attention: float | None = None
    """How much the teacher's objects attend to their own label: 0 (to all labels of the image alike) to 1."""
    label_use: float | None = None
    """How far the teacher's features follow the objects' classes: from 0, not at all, to the square root of 2 at most
    (lgd/methods/label_guided/label_use.py)."""
    label_signal: dict[str, Number] = Field(default_factory=dict)
    """How far the outputs of the teacher's modules do, in the order in which the labels pass them, the features last
    (docs/method.md, "Label signal")."""


class Pretraining(Settings):
    """The training of a frozen teacher: part of the cost of every training that uses it."""

    fingerprint: str
    """Of the teacher's training."""
    backbone: str
    """Backbone of the teacher; its detector's label where that is no built-in one."""
    weights: str = ""
    """The file or model that was given as the teacher; "" for one that the suite trained."""
    steps: Count
    """Steps of its training; 0 for a teacher that was given."""
    AP: Number | None
    """Box AP that the teacher reached, percent."""
    device_seconds: dict[str, Number]
    """What its training cost, by phase (see lgd/results/cost_meter.py)."""
    joules: dict[str, Number] = Field(default_factory=dict)
    """Energy of its training by phase, joules; empty where it was not measured."""
    hardware: dict[str, str] = Field(default_factory=dict)
    """Of the machine that trained it, as a record's; empty for a teacher that was given."""
    reused: bool
    """Whether the teacher was trained before this training began."""
    shared_by: Annotated[Count, Field(ge=1)] = 1
    """How many trainings have used it up to this one, this one included."""
    hours_known: bool = True
    """Whether ``device_seconds`` has the teacher's training; False for a given teacher whose hours nobody said."""
    plain_AP: Number | None = None  # noqa: N815  as AP
    """Box AP of the plain student that the teacher had to beat; None where none was known."""
    gate: Literal["", "passed", "overruled"] = ""
    """Whether the teacher was good enough (lgd/training/teacher_gate.py): ``overruled``, it was not, and a student was
    trained all the same. "" where the method asks for nothing."""

    @property
    def label(self) -> str:
        """The teacher in tables: its backbone, or the last two parts of the file that was given."""
        return "/".join(self.weights.split("/")[-2:]) if self.weights else self.backbone

    @property
    def full(self) -> float:
        """Device-seconds of the teacher's whole training, as the paper's Table 7 counts them."""
        return sum(self.device_seconds.values())

    @property
    def training(self) -> float:
        """Device-seconds of the teacher's training steps, as a student's own are counted where costs are compared.

        0 for a given teacher whose hours nobody said: it was only evaluated here.
        """
        return self.device_seconds.get("training", self.full) if self.hours_known else 0.0

    @property
    def amortised(self) -> float:
        """Device-seconds divided by the number of trainings that share the teacher."""
        return self.full / self.shared_by


class Contention(Settings):
    """How busy the machine was while the training ran. On a busy machine times, and so costs, come out too long.

    Averages from the first step to the last, in CPU cores; of several machines those of the busiest.
    """

    own_cores: Number
    """Used by the training itself: its worker processes and their data loaders."""
    other_cores: Number
    """Used by other work on the machine, the sweep's own other trials included."""
    cores: Annotated[Count, Field(ge=1)]
    """That these processes may use."""
    step_spread: Number | None = None
    """Interquartile range of the step times over their median; None with fewer than four of them."""

    @property
    def load(self) -> float:
        """The part of the cores that was in use, 0 to 1. Near 1, the training had to share them with other work."""
        return (self.own_cores + self.other_cores) / self.cores


class Record(Settings):
    """What was trained, where, how it went and what came out. Costs are defined in lgd/results/cost_meter.py."""

    schema_version: Literal[3] = 3
    """Version of this schema."""
    status: Literal["finished", "diverged", "failed", "stopped"]
    """``diverged``: a loss became infinite or NaN. ``failed``: an error, named in ``reason``. ``stopped``: ended early
    by a sweep's scheduler; the scores are then those of the last evaluation."""
    reason: str = ""
    """Why it did not finish; "" where it did."""
    grid: Text = ""
    """Name of the grid; "" outside a sweep."""
    preset: Text = ""
    """Name of the preset; "" outside a sweep."""
    arm: Text = ""
    """Name of the arm in the grid; "" outside a sweep, ``teacher`` for a frozen teacher's training."""
    experiment: Experiment
    """All settings of the training."""
    fingerprint: str = ""
    """Hash of the model, optimiser and data as built; empty when the training failed before."""
    fingerprint_version: int = FINGERPRINT_VERSION
    """Version of the rule that made ``fingerprint``; hashes of two versions do not compare."""
    data: dict[str, str | Count | Number] = Field(default_factory=dict)
    """What the data set says of itself: source, fingerprint, counts of classes, images and objects, and what was
    dropped."""
    weights: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file of pretrained weights that was read, by its source."""
    parameters: dict[str, Count] = Field(default_factory=dict)
    """Number of parameters, of ``student`` and ``teacher``."""
    steps: Count = 0
    """Training steps that were done; 0 where the training failed."""
    student: Scores | None = None
    """Of the student's boxes at the last evaluation; None without one, or where it diverged or failed."""
    teacher: Scores | None = None
    """Of the instructive features' boxes, as ``student``; None where they were not evaluated, and where ``stopped``."""
    student_mask: Scores | None = None
    """Of the student's masks, as ``student``; None for a detector without masks, and where ``stopped``."""
    teacher_mask: Scores | None = None
    """Of the instructive features' masks, as ``teacher``."""
    evaluations: list[EvaluationPoint] = Field(default_factory=list)
    """Scores on the way, by rising step, the last included."""
    losses: dict[str, Curve] = Field(default_factory=dict)
    """Each loss by its name, a point the mean over the steps since the point before."""
    label_signal: list[tuple[Count, dict[str, Number]]] = Field(default_factory=list)
    """By step, before the first evaluation: as EvaluationPoint's, on the first validation images."""
    teacher_lead: Curve = Field(default_factory=list)
    """By how much the instructive features' detection loss was lower than the student's, as a part of it: running means
    (lgd/methods/teacher_watch.py). Below 0 the teacher is worse than its student."""
    distilled: list[tuple[Count, Count]] = Field(default_factory=list)
    """First and last step of each time that the student learnt from the distillation loss."""
    overrides: list[str] = Field(default_factory=list)
    """Settings that the command changed, as ``key=value``."""
    seconds: dict[str, Number] = Field(default_factory=dict)
    """Wall-clock seconds by phase."""
    within_training: dict[str, Number] = Field(default_factory=dict)
    """Seconds of the phase ``training`` spent on ``data_wait`` and on ``first_steps``."""
    device_seconds: dict[str, Number] = Field(default_factory=dict)
    """``seconds`` times the devices held, by phase; those of earlier attempts by their own number."""
    joules: dict[str, Number] = Field(default_factory=dict)
    """Energy of all devices by phase, joules; empty where it was not measured."""
    attempts: Count = 1
    """Starts of the training, restarts counted."""
    step_ms: Number | None = None
    """Median time of a step, milliseconds, without the first steps of an attempt."""
    peak_memory_mib: dict[str, Number] = Field(default_factory=dict)
    """Largest over devices and attempts, MiB: ``device`` (allocated on a GPU) and ``host`` (resident)."""
    contention: Contention | None = None
    """How busy the machine was; None where it was not measured."""
    devices: Count = 1
    """GPUs, or worker processes where there is none; the most that an attempt had."""
    fewest_devices: Count | None = None
    """The fewest that an attempt had, where their number changed (``--elastic``)."""
    nodes: Count = 1
    """Machines."""
    pretraining: Pretraining | None = None
    """Of a frozen teacher."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of Python, the suite and the packages that its numbers depend on, by name."""
    hardware: dict[str, str] = Field(default_factory=dict)
    """Host, system, processor, cores, memory in GiB (``memory_gib``) and GPU (``none`` without one), as texts."""
    git_commit: str = ""
    """Commit of the code, with ``+changes`` where the working tree differed; ``unknown`` where git knew none."""
    started: str = ""
    """When it began, UTC, ISO 8601."""
    finished: str = ""
    """When it ended, UTC, ISO 8601."""
    written_teacher_beat_student: LeftUnread = Field(
        default=None, validation_alias="teacher_beat_student", exclude=True, repr=False
    )
    """``teacher_beat_student`` in the file, which has it for other programs."""

    @property
    def name(self) -> str:
        return f"{self.shown_arm} seed {self.experiment.seed}"

    @property
    def shown_arm(self) -> str:
        """The arm's name in tables and figures, with :attr:`ours`; the method's for a run outside a grid."""
        name, mark = self.arm or self.experiment.method.label, self.ours
        if not mark or "(ours: " in name:
            return name
        return name.replace("(ours)", f"({mark})") if "(ours)" in name else f"{name} ({mark})"

    @property
    def ours(self) -> str:
        """What is no part of the published method, where the command's own settings switch any of it on; else "".

        ``ours: residual teacher``. An arm of a grid that is about an addition has a name that says so.
        """
        added = self.experiment.method.additions
        return f"ours: {', '.join(added)}" if added and _adds(self.experiment.method, tuple(self.overrides)) else ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def teacher_beat_student(self) -> bool | None:
        """Whether the teacher was ever better than its student, in box AP at an evaluation.

        Where no evaluation has a teacher's AP, in its detection loss. None where the method has no such teacher, or
        neither was measured.
        """
        if self.teacher_was_scored:
            return any(of_teacher > own for of_teacher, own in self._aps_of_both)
        return any(lead > 0 for _, lead in self.teacher_lead) if self.teacher_lead else None

    @property
    def teacher_was_scored(self) -> bool:
        """Whether any evaluation has the AP of teacher and student."""
        return bool(self._aps_of_both)

    @property
    def _aps_of_both(self) -> list[tuple[float, float]]:
        pairs = [(x.teacher.AP, x.student.AP) for x in self.evaluations if x.teacher is not None]
        return [(of_teacher, own) for of_teacher, own in pairs if of_teacher is not None and own is not None]

    @property
    def gpu_hours(self) -> float:
        """Device-hours of all phases, without a frozen teacher's training."""
        return sum(self.device_seconds.values()) / 3600

    @property
    def data_wait(self) -> float | None:
        """The part of the phase ``training`` that steps waited for data, 0 to 1; None where no step was made."""
        seconds = self.seconds.get("training", 0.0)
        return self.within_training["data_wait"] / seconds if seconds and "data_wait" in self.within_training else None

    @property
    def devices_held(self) -> str:
        """The number of devices, or its range: ``2 to 8``."""
        return str(self.devices) if self.fewest_devices is None else f"{self.fewest_devices} to {self.devices}"

    @property
    def watts(self) -> float | None:
        """Mean power of a device in the phase ``training``; None where no energy was measured."""
        seconds = self.device_seconds.get("training", 0.0)
        return self.joules["training"] / seconds if seconds and "training" in self.joules else None

    def same_build(self, fingerprint: str, version: int = FINGERPRINT_VERSION) -> bool | None:
        """Whether the training had this fingerprint; None where fingerprints of two versions cannot be compared."""
        return self.fingerprint == fingerprint if self.fingerprint_version == version else None

    def save(self, directory: Path) -> Path:
        """Write ``record.json`` into ``directory``, atomically."""
        path = directory / FILE
        write_text(path, self.model_dump_json(indent=1) + "\n")
        return path


@lru_cache(maxsize=1024)
def _adds(method: Method, overrides: tuple[str, ...]) -> bool:
    """Whether any of the settings ``key=value`` switches on one of the method's additions."""
    keys = (x.partition("=")[0].strip().partition("method.")[2] for x in overrides)
    defaults = {key: field.default for key in keys if (field := type(method).model_fields.get(key)) is not None}
    return method.model_copy(update=defaults).additions != method.additions


def load(path: Path) -> Record:
    """Read a record. Raises InputError naming the file, and the line or the field that is wrong."""
    # Reading and checking at once takes half as long. What is of another version, or wrong, is read again.
    with suppress(OSError, ValidationError):
        record = Record.model_validate_json(read_file(path))
        if "schema_version" in record.model_fields_set:
            return record
    return _load_with_cause(path)


def _load_with_cause(path: Path) -> Record:
    try:
        raw = json.loads(read_file(path).decode("utf-8"))
        # Half of a surrogate pair is text that cannot be written.
        json.dumps(raw, ensure_ascii=False).encode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not a record ({error})") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets as deep, have no line.
        raise InputError(f"{path}:{getattr(error, 'lineno', 1)}: not a record ({error})") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version not in (1, 2, SCHEMA):
        raise InputError(f"{path}: record schema {version!r} is not known (this version reads 1 to {SCHEMA})")
    try:
        return Record.model_validate(raw if version == SCHEMA else _upgraded(raw))
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from None


def _upgraded(raw: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1 or 2 as one of this schema."""
    raw = {**raw}
    if raw["schema_version"] == 1:
        # All of them had one device and one attempt.
        raw["device_seconds"] = raw.get("seconds", {})
    within = raw.get("within_training")
    if isinstance(within, dict):
        raw["within_training"] = {"data_wait" if name == "waiting" else name: x for name, x in within.items()}
    return {**raw, "schema_version": SCHEMA, "fingerprint_version": 1}
