"""What to train: a frozen, typed description of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from lgd.config.components import AdapterVariant, component_conflict
from lgd.config.phases import Phases
from lgd.errors import InputError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


SAME_RESULT = (
    "threads", "device", "memory_format", "compile", "data.workers", "checkpoint.every", "checkpoint.keep", "log"
)  # fmt: skip
"""Settings that change how a training goes, not what it trains."""


PAPER_BATCH = 16
"""Images a step in the paper, which the linear scaling rule starts from."""

LR_TOLERANCE = 0.01
"""How far a learning rate that was set may lie from the linear scaling rule's, as a part of it, before it is remarked on."""


class Settings(BaseModel):
    """Base of every part: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Backbone(Settings):
    """Bottom-up network. What is "auto" follows from the rest; the properties say what it came to.

    width: channels of its stem, a multiple of every stage's (auto: the standard network's, 64, or 96 for swin_t).
    norm: of a ResNet's layers (auto: FrozenBN with weights; from scratch GN, or BN where 32 groups do not fit). swin_t
    has its LayerNorms whatever is set, so leaves no choice.
    weights: "none", or what :func:`lgd.detectors.weights.load_weights` reads.
    freeze_at: stages frozen for good, as detectron2 counts them: 1 is the stem, 2 the stem and res2 (auto: 2 for a
    ResNet with weights as in detectron2's configs, else 0).
    deformable: DCNv2 in res3 to res5. pixel_std: what the weights expect, "unit" for images with only the mean
    subtracted, "imagenet" for ones divided by ImageNet's deviation too (auto: known from the weights' name, see
    :func:`lgd.detectors.conventions.conventions`).
    """

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d", "swin_t"] = "resnet50"
    width: int | Literal["auto"] = "auto"
    norm: Literal["auto", "FrozenBN", "BN", "SyncBN", "GN"] = "auto"
    weights: Annotated[str, Field(min_length=1)] = "none"
    freeze_at: int | Literal["auto"] = "auto"
    deformable: bool = False
    pixel_std: Literal["auto", "unit", "imagenet"] = "auto"

    @field_validator("width", "freeze_at", mode="before")
    @classmethod
    def _whole_number(cls, value: object, info: ValidationInfo) -> object:
        low, high = (1, 4096) if info.field_name == "width" else (0, 5)
        if value != "auto" and (type(value) is not int or not low <= value <= high):
            raise ValueError(f"must be auto or a whole number from {low} to {high}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.from_scratch and (self.norm == "FrozenBN" or self.resolved_freeze_at > 0):
            raise ValueError(
                f"a backbone from scratch (weights none) cannot train with norm {self.norm} and freeze_at"
                f" {self.freeze_at}: random layers would stay as they are; use norm BN or GN and freeze_at 0"
            )
        if self.name == "swin_t" and self.norm != "auto":
            raise ValueError(f"norm {self.norm} does not apply to swin_t, whose norms are LayerNorm: leave it at auto")
        if self.deformable and self.name in ("resnet18", "resnet34", "swin_t"):
            why = "has no 3x3 convolutions" if self.name == "swin_t" else "has no bottleneck blocks"
            raise ValueError(f"{self.name} {why} to make deformable: use resnet50, resnet101 or resnext101_32x8d")
        if self.name == "resnext101_32x8d" and self.resolved_width % 8:
            raise ValueError(f"resnext101_32x8d has 32 groups: its width must be divisible by 8, not {self.width}")
        if self.norm == "GN" and self.resolved_width % 32:
            raise ValueError(f"norm GN has 32 groups: the backbone's width must be divisible by 32, not {self.width}")
        return self

    @property
    def from_scratch(self) -> bool:
        return self.weights == "none"

    @property
    def resolved_width(self) -> int:
        if self.width == "auto":
            return 96 if self.name == "swin_t" else 64
        return self.width

    @property
    def resolved_norm(self) -> str:
        """A name that detectron2's ``get_norm`` knows; LN for swin_t."""
        if self.name == "swin_t":
            return "LN"
        if self.norm != "auto":
            return self.norm
        if not self.from_scratch:
            return "FrozenBN"
        return "GN" if self.resolved_width % 32 == 0 else "BN"

    @property
    def resolved_freeze_at(self) -> int:
        if self.freeze_at != "auto":
            return self.freeze_at
        return 0 if self.from_scratch or self.name == "swin_t" else 2


class Detector(Settings):
    """The student. What a detector has no use for is not read; "auto" is its own standard.

    channels: of the FPN and the heads. head_convs: convolutions of a dense detector's towers, and of Mask R-CNN's mask
    head. head_norm: their norm (auto: none for RetinaNet and Mask R-CNN, GN for FCOS, ATSS and POTO). fc_dim: width of
    R-CNN's two fully connected layers; regions: an image that its heads are trained on; proposals: an image that NMS
    leaves it, in training and evaluation. anchor_scale: side of a level's smallest anchor over its stride (auto: 4 for
    RetinaNet, 8 for R-CNN and ATSS; FCOS and POTO have no anchors). coarse_levels: a dense detector's p6 and p7, whose
    smallest anchors are larger than a small picture.
    """

    name: Literal["retinanet", "fcos", "faster_rcnn", "mask_rcnn", "atss", "poto"] = "retinanet"
    backbone: Backbone = Backbone(weights="detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    channels: PositiveInt = 256
    head_convs: PositiveInt = 4
    head_norm: Literal["auto", "", "GN"] = "auto"
    fc_dim: PositiveInt = 1024
    regions: PositiveInt = 512
    proposals: PositiveInt = 1000
    anchor_scale: float | Literal["auto"] = "auto"
    coarse_levels: bool = True

    @field_validator("anchor_scale", mode="before")
    @classmethod
    def _positive(cls, value: object) -> object:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != "auto" and not (number and 0 < float(value) < float("inf")):  # type: ignore[arg-type]
            raise ValueError("must be auto or a number above 0")
        return value

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.resolved_head_norm == "GN" and self.name != "faster_rcnn":
            wide = 32 if self.channels >= 256 else 8
            if self.channels % wide:
                raise ValueError(f"head_norm GN needs channels in multiples of {wide}, not {self.channels}")
        return self

    @property
    def resolved_head_norm(self) -> str:
        if self.head_norm != "auto":
            return self.head_norm
        return "GN" if self.name in ("fcos", "atss", "poto") else ""

    @property
    def resolved_anchor_scale(self) -> float:
        if self.anchor_scale != "auto":
            return self.anchor_scale
        return 4.0 if self.name == "retinanet" else 8.0


class Data(Settings):
    """Where images come from and how they are resized.

    source: what :func:`lgd.data.catalog.resolve` takes, such as "shapes" or "voc:DIR". shapes_*: size of the generated set
    (images, and their side in pixels).
    min_sizes: shorter sides to draw from in training; test_size: shorter side in evaluation; max_size: longer side.
    workers: processes that load data, beside each that trains (auto: sized to the machine, see
    :func:`lgd.data.loaders.worker_processes`).
    """

    source: str = "shapes"
    shapes_train: PositiveInt = 1000
    shapes_val: PositiveInt = 200
    shapes_side: Annotated[int, Field(ge=64, le=1024)] = 128
    shapes_seed: Annotated[int, Field(ge=0)] = 0
    min_sizes: tuple[PositiveInt, ...] = Field(default=(800,), min_length=1)
    max_size: PositiveInt = 1333
    test_size: PositiveInt = 800
    flip: bool = True
    workers: int | Literal["auto"] = "auto"

    @field_validator("workers", mode="before")
    @classmethod
    def _whole_number(cls, value: object) -> object:
        if value != "auto" and (type(value) is not int or value < 0):
            raise ValueError("must be auto or a whole number from 0")
        return value


class Schedule(Settings):
    """Optimisation. Fractions are of ``steps``; the defaults are the paper's for 2x.

    batch: images a step, all devices together. accumulate: parts that a step's batch goes through the model in, one
    after the other, their gradients averaged; a step stays a step for the rate, the phases and the records. Losses that
    are means over images come out as with the whole batch at once. What does not: losses divided by a number of
    positives (each part by its own; RetinaNet's running normaliser also moves once a part), batch norm's statistics
    (each part's own) and, where wide and high images are mixed, which images share a batch.
    lr: learning rate; None ("auto" when set) follows the batch by the linear scaling rule (Goyal et al., arXiv 1706.02677,
    section 2.1) from lr_per_16, the rate for 16 images; :attr:`resolved_lr` is what it came to.
    clip: largest absolute value of a gradient's element, 0 for none.
    frozen: how long the backbone gets no update. distill_from, distill_until: when the distillation loss reaches the
    student (before and after, its adapter alone).
    """

    steps: PositiveInt = 180_000
    batch: PositiveInt = 16
    accumulate: PositiveInt = 1
    lr: Positive | None = None
    lr_per_16: Positive = 0.01
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 1000
    warmup_factor: Fraction = 1e-3
    milestones: tuple[Fraction, ...] = (120 / 180, 160 / 180)
    gamma: Fraction = 0.1
    clip: NonNegative = 1.0
    frozen: Fraction = 20 / 180
    distill_from: Fraction = 30 / 180
    distill_until: Fraction = 1.0

    @field_validator("lr", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not split into accumulate {self.accumulate} equal parts")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must rise")
        if self.distill_until <= self.distill_from:
            raise ValueError(f"distill_until {self.distill_until} must lie after distill_from {self.distill_from}")
        return self

    @property
    def linear_lr(self) -> float:
        """The linear scaling rule's learning rate for this batch."""
        return self.lr_per_16 * self.batch / PAPER_BATCH

    @property
    def resolved_lr(self) -> float:
        return self.linear_lr if self.lr is None else self.lr

    @property
    def mismatch(self) -> str:
        """A line on a rate that was set for another batch than the paper's and is off the linear scaling rule, or ""."""
        if self.batch == PAPER_BATCH or abs(self.resolved_lr - self.linear_lr) <= LR_TOLERANCE * self.linear_lr:
            return ""
        return (
            f"schedule.lr {self.resolved_lr:g} is not what the linear scaling rule gives for {self.batch} images a step:"
            f" {self.linear_lr:g} ({self.lr_per_16:g} for {PAPER_BATCH}); schedule.lr=auto follows the rule"
        )

    @property
    def phases(self) -> Phases:
        """The same fractions as iterations."""
        return Phases(
            frozen_until=round(self.frozen * self.steps),
            distill_from=round(self.distill_from * self.steps),
            distill_until=None if self.distill_until == 1 else round(self.distill_until * self.steps),
        )


class Imitation(Settings):
    """FGFI (METHOD, "FGFI"): a teacher trained before, and where the student imitates it. Read with method fgfi alone.

    backbone: of the teacher, whose training is the student's in all else. steps: of that training, auto for the
    student's. seed: of that training, its own so that runs of several seeds share one teacher.
    levels: which boxes count on a level: ``best``, those whose anchor of the largest IoU lies there (each level uses
    the boxes assigned to it, as FGFI's author answered); ``fpn``, those that FPN's equation 1 sends there; ``all``.
    threshold: of a cell's IoU to the box's largest on the level. weight: of the loss. relu: after the adaptation layer.
    from_step: steps without imitation.
    """

    backbone: Backbone = Backbone(name="resnet101", weights="detectron2://ImageNetPretrained/MSRA/R-101.pkl")
    steps: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    levels: Literal["best", "fpn", "all"] = "best"
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    weight: NonNegative = 0.01
    relu: bool = True
    from_step: Annotated[int, Field(ge=0)] = 400

    @field_validator("steps", mode="before")
    @classmethod
    def _auto(cls, value: object) -> object:
        return None if value == "auto" else value


class Method(Settings):
    """Baseline, LGD with its components and weights, or FGFI.

    encoder, adapter, mapper: components on or off. variant: who attends to whom in the adapter. context: the context
    object. detach_appearance: the teacher sends no gradient into the student's features. distill_weight: lambda.
    instructive_weight: factor of the instructive features' detection loss. lr_factor: of the teacher's and the
    distillation adapter's learning rate, to the student's (the paper: 1). fgfi: see Imitation.
    """

    name: Literal["baseline", "lgd", "fgfi"] = "lgd"
    encoder: bool = True
    adapter: bool = True
    mapper: bool = True
    variant: AdapterVariant = "appearance_queries"
    context: bool = True
    detach_appearance: bool = False
    distill_weight: NonNegative = 1.0
    instructive_weight: NonNegative = 1.0
    lr_factor: Positive = 1.0
    fgfi: Imitation = Imitation()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.name == "lgd":
            refusal = component_conflict(
                encoder=self.encoder,
                adapter=self.adapter,
                mapper=self.mapper,
                variant=self.variant,
                context=self.context,
            )
            if refusal:
                raise ValueError(refusal)
        return self


class Evaluation(Settings):
    """every: steps between evaluations while training (0: at the end only). teacher: evaluate the instructive features
    too: teacher AP, and whether they follow the labels, for which the teacher runs twice. scorer: of COCO's AP (auto:
    hotcoco, whose numbers are pycocotools' own, where it is installed). keep_detections: keep those of the last
    evaluation beside the record, as COCO's results, compressed."""

    every: Annotated[int, Field(ge=0)] = 0
    teacher: bool = False
    scorer: Literal["auto", "pycocotools", "hotcoco"] = "auto"
    keep_detections: bool = False


class Checkpoints(Settings):
    """For resuming an interrupted run; they change nothing about what is trained.

    every: steps between two, auto for a fortieth of all steps but at least 50, 0 for none. keep: how many of the latest
    stay on disk; all go when the run has its record.
    """

    every: int | Literal["auto"] = "auto"
    keep: PositiveInt = 2

    @field_validator("every", mode="before")
    @classmethod
    def _whole_number(cls, value: object) -> object:
        if value != "auto" and (type(value) is not int or value < 0):
            raise ValueError("must be auto or a whole number from 0")
        return value

    def resolved_every(self, steps: int) -> int:
        return max(50, steps // 40) if self.every == "auto" else self.every


class Experiment(Settings):
    """One run, whole. precision: of the forward pass (autocast); parameters stay float32. threads: CPU threads, 0 to
    leave torch's own choice. log: services that get the curves besides TensorBoard (see writers.py). memory_format: how
    feature maps lie in memory (auto: what measured faster, see :meth:`channels_last`). compile: have torch compile
    backbone, head, teacher and distance, which takes minutes once and a compiler (see docs/performance.md)."""

    detector: Detector = Detector()
    data: Data = Data()
    schedule: Schedule = Schedule()
    method: Method = Method()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoints = Checkpoints()
    log: tuple[Literal["wandb", "mlflow"], ...] = ()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: bool = False
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _precision_fits_the_device(self) -> Self:
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
        return self

    @model_validator(mode="after")
    def _imitates(self) -> Self:
        start, steps = self.method.fgfi.from_step, self.schedule.steps
        if self.method.name == "fgfi" and start >= steps:
            raise ValueError(f"method.fgfi.from_step {start} must be below schedule.steps {steps}")
        try:
            self.teacher  # noqa: B018  a teacher that cannot be described is refused with the run that needs it
        except ValidationError as error:
            raise ValueError(f"method.fgfi describes a teacher that cannot be trained: {explain(error)}") from None
        return self

    def channels_last(self, on_gpu: bool) -> bool:
        """Whether feature maps have their channels innermost.

        auto: always, but for deformable convolutions on a CPU, whose operator there knows the other order only.
        """
        if self.memory_format != "auto":
            return self.memory_format == "channels_last"
        return on_gpu or not self.detector.backbone.deformable

    @property
    def teacher(self) -> Experiment | None:
        """The training of the frozen teacher that the method needs, None where it needs none."""
        if self.method.name != "fgfi":
            return None
        imitation = self.method.fgfi
        described = self.model_dump()
        described["detector"]["backbone"] = imitation.backbone.model_dump()
        described["schedule"]["steps"] = imitation.steps or self.schedule.steps
        described |= {"method": {"name": "baseline"}, "seed": imitation.seed}
        described["evaluation"] |= {"every": 0, "teacher": False}
        return Experiment.model_validate(described)

    def override(self, assignments: Iterable[str] | Mapping[str, Any]) -> Experiment:
        """A copy with ``key=value`` assignments, keys dotted (``schedule.steps=100``), values as YAML reads them.

        Raises InputError with one line that names the key or the value.
        """
        pairs = assignments.items() if isinstance(assignments, Mapping) else map(_split, assignments)
        described = self.model_dump(mode="json")
        for key, value in pairs:
            *parents, leaf = key.split(".")
            part: Any = described
            for parent in parents:
                part = part.get(parent) if isinstance(part, dict) else None
            if not isinstance(part, dict) or leaf not in part:
                raise InputError(f"no setting {key!r}; {_nearest(key, self)}")
            if isinstance(part[leaf], dict):
                raise InputError(
                    f"{key!r} is a group of settings: set one of {', '.join(f'{key}.{x}' for x in part[leaf])}"
                )
            part[leaf] = value
        return parse(described)


def parse(described: Mapping[str, Any]) -> Experiment:
    """Build an Experiment from plain data. Raises InputError with one line for the first thing that is wrong."""
    try:
        return Experiment.model_validate(described)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """One line for pydantic's first complaint: where, what, and what was given."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(x) for x in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = "" if isinstance(given, (dict, BaseModel)) else f" (given: {given!r})"
    return f"{where}: {message}{shown}" if where else message


def settings(part: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key, in order."""
    found: dict[str, Any] = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        found |= settings(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return found


def difference(there: Experiment, here: Experiment) -> str:
    """The settings in which two experiments would train another thing, in one line; empty where there are none."""
    theirs, ours = settings(there), settings(here)
    return ", ".join(
        f"{key} is {theirs.get(key)!r} there and {ours[key]!r} here"
        for key in ours
        if key not in SAME_RESULT and theirs.get(key) != ours[key]
    )


def _split(assignment: str) -> tuple[str, Any]:
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{assignment!r} is not of the form key=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
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
