"""What to train: a frozen, typed description of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from lgd.config.base_method import Method
from lgd.config.detector import Backbone, Detector, with_source
from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.config.method import (
    UnloadedMethod,
    choose,
    code_of,
    current_key,
    default_method,
    known_methods,
    may_be_loaded,
    method_class,
    switched,
)
from lgd.config.schedule import Schedule
from lgd.config.settings import (
    CHANGES_NO_RESULT,
    Fraction,
    NonNegativeInt,
    PositiveInt,
    Settings,
    auto_or_int,
    keys_without_effect_on_result,
    settings,
)
from lgd.config.validation_error import explain
from lgd.errors import InputError

__all__ = [
    "EPOCHS",
    "NEUTRAL_KEYS",
    "STEPS",
    "Backbone",
    "Checkpoints",
    "Data",
    "Detector",
    "Evaluation",
    "Experiment",
    "Method",
    "Schedule",
    "Settings",
    "difference",
    "explain",
    "parse",
    "settings",
    "split_assignment",
    "without_neutral_settings",
]

STEPS, EPOCHS = "schedule.steps", "schedule.epochs"


class Data(Settings):
    """Where images come from and how they are resized."""

    source: str = "shapes"
    """A data source of :func:`lgd.data.catalog.resolve`, such as "shapes" or "voc:DIR"."""
    val_fraction: Annotated[Fraction, Field(lt=1)] = 0.0
    """The part of the training images that is validated on instead of being trained on, for data that has no validation
    split; 0: the data's own split."""
    split_seed: NonNegativeInt = 0
    """Which images ``val_fraction`` takes: they follow from this and from the images' names."""
    train_fraction: Annotated[Fraction, Field(gt=0)] = 1.0
    """The part of the training images that are trained on. Which ones follows from their ids, and a smaller part is
    within a larger one."""
    resplit: bool = False
    """Whether ``val_fraction`` takes training images also where the data has a validation split, which is then left
    alone."""
    shapes_train: PositiveInt = 1000
    """Synthetic training images."""
    shapes_val: PositiveInt = 200
    """Synthetic validation images."""
    shapes_side: Annotated[int, Field(ge=64, le=1024)] = 128
    """Side of the synthetic images, pixels."""
    shapes_seed: NonNegativeInt = 0
    """Seed of the synthetic images."""
    min_sizes: tuple[PositiveInt, ...] = Field(default=(800,), min_length=1)
    """Shorter sides that training images are resized to, one drawn for each image; pixels."""
    max_size: PositiveInt = 1333
    """Largest longer side, pixels."""
    test_size: PositiveInt = 800
    """Shorter side in evaluation, pixels."""
    flip: bool = True
    """Flip half of the training images horizontally."""
    workers: Annotated[int | Literal["auto"], CHANGES_NO_RESULT] = "auto"
    """Processes that load data, for each process that trains; auto: by the machine's cores
    (:func:`lgd.data.loaders.worker_processes`)."""

    @field_validator("workers", mode="before")
    @classmethod
    def _auto_or_int(cls, value: object) -> object:
        return auto_or_int(value)


DATA_SET_KEYS = ("source", "val_fraction", "split_seed", "resplit")
"""Settings of :class:`Data` that name the data set; its own fingerprint tells more."""


class Evaluation(Settings):
    """When and how the validation split is scored."""

    every: NonNegativeInt | Literal["auto"] = 0
    """Steps between evaluations while training; 0: at the end only; auto: a fifth of all steps, rounded up."""
    teacher: bool | Literal["auto"] = "auto"
    """Evaluate the instructive features too: teacher AP, and whether they follow the labels, for which the teacher runs
    twice. For a method that has such features. auto: true."""
    scorer: Literal["auto", "pycocotools", "hotcoco"] = "auto"
    """The library that computes COCO's AP; auto: hotcoco, whose numbers are pycocotools' own, where it is installed."""
    keep_detections: bool = False
    """Keep the last evaluation's detections beside the record, in COCO's results format, compressed."""

    @field_validator("every", mode="before")
    @classmethod
    def _auto_or_int(cls, value: object) -> object:
        return auto_or_int(value)

    def resolved_every(self, steps: int) -> int:
        return -(-steps // 5) if self.every == "auto" else self.every

    def resolved_steps(self, steps: int) -> list[int]:
        """After which steps of ``steps`` the split is scored."""
        every = self.resolved_every(steps)
        return [*(range(every, steps, every) if every else ()), steps]

    @property
    def scores_teacher(self) -> bool:
        """Whether evaluations score the instructive features too, if there are any."""
        return self.teacher is not False


class Checkpoints(Settings):
    """For resuming an interrupted run. All are removed when the run has its record."""

    every: Annotated[int | Literal["auto"], CHANGES_NO_RESULT] = "auto"
    """Steps between two; auto: a fortieth of all steps but at least 50; 0: none."""
    keep: Annotated[PositiveInt, CHANGES_NO_RESULT] = 2
    """How many of the latest stay on disk."""

    @field_validator("every", mode="before")
    @classmethod
    def _auto_or_int(cls, value: object) -> object:
        return auto_or_int(value)

    def resolved_every(self, steps: int) -> int:
        return max(50, steps // 40) if self.every == "auto" else self.every


class Experiment(Settings):
    """One run, whole."""

    detector: Detector = Detector()
    """The detector that is trained, which is the student of a method."""
    data: Data = Data()
    """The images, their sizes, and how they are loaded."""
    schedule: Schedule = Schedule()
    """Steps, batch, optimiser and learning rate."""
    method: Annotated[SerializeAsAny[Method], BeforeValidator(choose)] = Field(default_factory=default_method)
    """Which method, and its own settings: those that this method has, and no others."""
    evaluation: Evaluation = Evaluation()
    """When the validation images are evaluated."""
    checkpoint: Checkpoints = Checkpoints()
    """When checkpoints are written."""
    log: Annotated[tuple[Literal["wandb", "mlflow"], ...], CHANGES_NO_RESULT] = ()
    """Services that get the curves, besides TensorBoard (lgd/training/writers.py)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward pass, under autocast; parameters stay float32."""
    device: Annotated[Literal["auto", "cpu", "cuda"], CHANGES_NO_RESULT] = "auto"
    """Where it is trained; auto: on a GPU where there is one, else on the CPU."""
    threads: Annotated[NonNegativeInt, CHANGES_NO_RESULT] = 0
    """CPU threads; 0: torch's own choice."""
    memory_format: Annotated[Literal["auto", "contiguous", "channels_last"], CHANGES_NO_RESULT] = "auto"
    """Memory format of feature maps and convolution weights; auto: the faster one, see :meth:`channels_last`."""
    compile: Annotated[bool, CHANGES_NO_RESULT] = False
    """torch.compile for backbone, head, teacher and distance, which takes minutes once and a C compiler
    (docs/performance.md)."""
    seed: NonNegativeInt = 0
    """Seeds the initial weights, the order of the images and the augmentation."""

    @model_validator(mode="after")
    def _precision_fits_the_device(self) -> Self:
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
        return self

    @model_validator(mode="after")
    def _method_can_be_trained(self) -> Self:
        with code_of(self.method):
            refusal = self.method.refusal(self.detector, self.schedule)
        if refusal:
            raise ValueError(refusal)
        try:
            self.teacher  # noqa: B018  building its description validates it
        except ValidationError as error:
            described = f"method.teacher of {self.method.name}"
            raise ValueError(f"{described} describes a teacher that cannot be trained: {explain(error)}") from None
        return self

    def channels_last(self, on_gpu: bool) -> bool:
        """Whether the memory format is channels_last.

        auto: yes, but for deformable convolutions on a CPU, whose operator knows only the contiguous format there.
        """
        if self.memory_format != "auto":
            return self.memory_format == "channels_last"
        return on_gpu or not self.detector.backbone.deformable

    @property
    def given_teacher(self) -> FrozenTeacherMethod | None:
        """The method, where it has a trained detector that is given as a file."""
        method = self.method
        return method if isinstance(method, FrozenTeacherMethod) and method.teacher.is_given else None

    @property
    def needs_teacher(self) -> bool:
        """Whether something must be trained, or given and looked at, before the student."""
        return self.given_teacher is not None or self.teacher is not None

    @property
    def teacher(self) -> Experiment | None:
        """The training that the method needs before, None where it needs none."""
        needed = self.method.teacher_training(self.detector, self.schedule)
        if needed is None:
            return None
        described = self.model_dump()
        described |= {"detector": needed.detector.model_dump(), "method": dict(needed.method), "seed": needed.seed}
        if needed.steps:
            described["schedule"] |= {"steps": needed.steps, "epochs": None}
        if needed.milestones is not None:
            described["schedule"]["milestones"] = needed.milestones
        described["evaluation"] |= {"every": 0, "teacher": False}
        return Experiment.model_validate(described)

    def override(self, assignments: Iterable[str] | Mapping[str, Any]) -> Experiment:
        """A copy with ``key=value`` assignments, keys dotted (``schedule.steps=100``), values as YAML reads them.

        A single value is taken as a list of one where a list is needed (``log=wandb``). ``schedule.steps`` replaces
        ``schedule.epochs`` and the other way round; together they are refused. Another ``detector.source`` replaces all
        settings of the detector. Raises InputError with one line that names the key or the value.
        """
        pairs = _pairs(assignments)
        described = self.model_dump(mode="json")
        if STEPS in dict(pairs) and dict(pairs).get(EPOCHS) not in (None, "auto"):
            raise InputError(f"{STEPS} and {EPOCHS} both set the length of the training: give one of them")
        if STEPS in dict(pairs):
            described["schedule"]["epochs"] = None
        described["detector"] = with_source(described["detector"], dict(pairs))
        name = dict(pairs).get("method.name", self.method.name)
        if name != self.method.name:
            described["method"] = switched(self.method, str(name))
        for key, value in pairs:
            part, leaf = _place(described, key)
            if (part is None or leaf not in part) and _takes_any(described, key):
                part = _made(described, key)
            elif part is None or leaf not in part:
                raise InputError(f"no setting {key!r}; {_nearest(key, parse(described))}")
            if isinstance(part.get(leaf), dict) and value != "auto":
                raise InputError(
                    f"{key!r} is a group of settings: set one of {', '.join(f'{key}.{x}' for x in part[leaf])}"
                )
            part[leaf] = _as_list(value) if isinstance(part.get(leaf), list) else value
        return parse(described)

    def has_setting(self, key: str) -> bool:
        """Whether there is a setting of this dotted key, or of the one that took its place."""
        part, leaf = _place(self.model_dump(mode="json"), current_key(key))
        return part is not None and leaf in part

    def applicable(self, assignments: Iterable[str]) -> list[str]:
        """Those of ``key=value`` assignments that are no setting of another method than this experiment's.

        A ``method.name`` among them is the method that counts. What is a setting of no known method stays in.
        """
        assignments = list(assignments)
        named = [value for key, value in map(split_assignment, assignments) if key == "method.name"]
        found = self.override({"method.name": named[-1]}) if named else self
        return [x for x in assignments if not _of_other_method(current_key(split_assignment(x)[0]), found)]


NEUTRAL_KEYS = tuple(
    x for of in ((Experiment, ""), (FrozenTeacherMethod, "method.")) for x in keys_without_effect_on_result(*of)
)
"""The settings that change no result, by dotted key; not every method has the last ones."""


def parse(described: Mapping[str, Any]) -> Experiment:
    """Build an Experiment from plain data. Raises InputError with one line for the first thing that is wrong."""
    try:
        return Experiment.model_validate(described)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def without_neutral_settings(experiment: Experiment) -> Experiment:
    """``experiment`` with every setting that changes no result at its default: equal for equal trainings."""
    defaults, there = settings(Experiment()) | settings(FrozenTeacherMethod(), "method."), settings(experiment)
    return experiment.override({key: defaults[key] for key in NEUTRAL_KEYS if key in there})


def difference(there: Experiment, here: Experiment) -> str:
    """The settings that differ between two experiments and may change the result, in one line; empty without any."""
    theirs, ours = settings(there), settings(here)
    return ", ".join(
        f"{key} is {theirs.get(key)!r} there and {ours[key]!r} here"
        for key in ours
        if key not in NEUTRAL_KEYS and theirs.get(key) != ours[key]
    )


_TEACHER_BACKBONE = "method.teacher.backbone"


def _pairs(assignments: Iterable[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Assignments in the order in which they are made, by the keys of today."""
    pairs = list(assignments.items() if isinstance(assignments, Mapping) else map(split_assignment, assignments))
    pairs = [(current_key(key), value) for key, value in pairs]
    # The teacher's backbone follows from the student's where only a part of it is set.
    return sorted(pairs, key=lambda pair: pair[0].startswith(_TEACHER_BACKBONE))


def _place(described: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The group in ``described`` that holds a dotted key, None where there is none, and the key's last part."""
    *parents, leaf = key.split(".")
    if (
        parents[:3] == _TEACHER_BACKBONE.split(".")
        and described["method"].get("teacher", {}).get("backbone", "") is None
    ):
        experiment = parse(described)
        if isinstance(experiment.method, FrozenTeacherMethod):
            found = experiment.method.resolved_backbone(experiment.detector)
            described["method"]["teacher"]["backbone"] = found.model_dump(mode="json")
    part: Any = described
    for parent in parents:
        part = part.get(parent) if isinstance(part, dict) else None
    return part if isinstance(part, dict) else None, leaf


def _takes_any(described: Mapping[str, Any], key: str) -> bool:
    """Whether the key is one of a method whose code, and so whose settings, are not loaded."""
    return key.startswith("method.") and not may_be_loaded(str(described["method"]["name"]))


def _made(described: dict[str, Any], key: str) -> dict[str, Any]:
    """The group that holds a dotted key, made where it is missing."""
    part = described
    for parent in key.split(".")[:-1]:
        part = part.setdefault(parent, {})
        if not isinstance(part, dict):
            raise InputError(f"{key!r}: {parent} is a setting, and no group of settings")
    return part


def _of_other_method(key: str, experiment: Experiment) -> bool:
    group, _, rest = key.partition(".")
    if group != "method" or experiment.has_setting(key) or isinstance(experiment.method, UnloadedMethod):
        return False
    return any(rest.partition(".")[0] in method_class(name).model_fields for name in known_methods())


def _as_list(value: Any) -> Any:
    """A list of one for a single value, the empty list for no value (``log=``)."""
    if isinstance(value, (list, tuple, dict)):
        return value
    return [] if value == "" else [value]


def split_assignment(assignment: str) -> tuple[str, Any]:
    """Key and value of ``key=value``, the value as YAML reads it. Raises InputError, one line."""
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{assignment!r} is not of the form key=value")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError):
        # A date such as 2001-99-99, a tag such as !!int, brackets that are thousands deep are no YAMLErrors.
        raise InputError(f"the value of {assignment!r} is not valid YAML") from None
    # YAML 1.1 reads 1e-3 as text.
    if isinstance(parsed, str):
        with suppress(ValueError):
            parsed = float(parsed)
    return key.strip(), "" if parsed is None else parsed


def _nearest(key: str, experiment: Experiment) -> str:
    known = list(settings(experiment))
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    leaf = [x for x in known if x.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    guesses = close or leaf
    return f"did you mean {guesses[0]!r}?" if guesses else f"known: {', '.join(known)}"
