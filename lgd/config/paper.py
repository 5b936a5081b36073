"""What the LGD paper reports, read from ``lgd/config/paper.yaml``: typed, checked, and typed in nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from lgd.config.experiment import Settings, explain
from lgd.config.method import method_class
from lgd.config.published import Published
from lgd.errors import InputError

DetectorName = Literal["retinanet", "fcos", "faster_rcnn", "mask_rcnn", "atss", "poto"]
BackboneName = Literal["r50", "r101", "r101_dcnv2", "x101", "x101_dcnv2", "swin_t"]
ScheduleName = Literal["1x", "2x", "3x", "18k", "30k"]
ScaleName = Literal["ss", "ms"]
DataName = Literal["coco", "voc", "crowdhuman"]
MethodName = Literal["baseline", "lgd", "fgfi", "labelenc", "dml", "tfkd", "ban"]
ScoreName = Literal["box_AP", "box_AP50", "box_AP75", "mask_AP", "mMR"]
CostName = Literal["pretraining_hours", "overall_hours", "method_hours", "reduction"]
MetricName = ScoreName | CostName

COCO_BATCH_ASPECT = 1.565
"""Longer side to shorter one of what 16 images of MS-COCO, landscape or portrait as detectron2 groups them, are padded
to: the median over batches drawn from 160 images of its 2017 splits (``lgd bench padding``). The single image's is 4/3
for most."""

SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
METRICS: tuple[MetricName, ...] = (*SCORES, *get_args(CostName))

DETECTORS: dict[DetectorName, str] = {
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "atss": "ATSS",
    "poto": "POTO",
}
BACKBONES: dict[BackboneName, str] = {
    "r50": "R-50",
    "r101": "R-101",
    "r101_dcnv2": "R-101-DCNv2",
    "x101": "X-101",
    "x101_dcnv2": "X-101-DCNv2",
    "swin_t": "Swin-T",
}
METHODS: dict[MethodName, str] = {
    "baseline": "baseline",
    "lgd": "LGD",
    "fgfi": "FGFI",
    "labelenc": "LabelEnc",
    "dml": "DML",
    "tfkd": "tf-KD",
    "ban": "BAN",
}
DATA: dict[DataName, str] = {"coco": "MS-COCO", "voc": "Pascal VOC", "crowdhuman": "CrowdHuman"}
"""How the paper writes each name."""


class Training(Settings):
    """One training of the paper."""

    detector: DetectorName
    """The student's."""
    backbone: BackboneName
    """The student's."""
    schedule: ScheduleName
    """Steps: of detectron2's 1x, 2x and 3x, or in thousands."""
    scale: ScaleName
    """One shorter side of training images (ss), or several (ms)."""
    data: DataName = "coco"
    """The data set that it is trained and evaluated on."""
    method: MethodName
    """The name ``baseline`` is the plain detector's."""
    teacher: BackboneName | None = None
    """Backbone of FGFI's teacher, which is a detector of the student's kind."""

    @model_validator(mode="after")
    def _teacher_fits(self) -> Self:
        if (self.method == "fgfi") != (self.teacher is not None):
            raise ValueError("fgfi needs the backbone of its teacher, and no other method has one")
        return self

    @property
    def setting(self) -> str:
        """All but the method: trainings of one setting are compared with each other."""
        found = f"{DETECTORS[self.detector]} {BACKBONES[self.backbone]} {self.schedule} {self.scale}"
        return found if self.data == "coco" else f"{found} {DATA[self.data]}"

    @property
    def method_title(self) -> str:
        """The method as tables write it, with FGFI's teacher."""
        teacher = f" ({BACKBONES[self.teacher]})" if self.teacher else ""
        return f"{METHODS[self.method]}{teacher}"

    @property
    def name(self) -> str:
        return f"{self.setting} {self.method_title}"

    @property
    def baseline(self) -> Training:
        return self.model_copy(update={"method": "baseline", "teacher": None})


class Metric(Settings):
    """A measured quantity."""

    title: str
    """As tables write it."""
    unit: Literal["%", "h"]
    """Percent, or hours of wall clock on the table's devices."""
    better: Literal["higher", "lower"]
    """Which of two values is the better one."""


class Cell(Settings):
    """One number of a table."""

    training: Training
    """What was trained."""
    metric: MetricName
    """What was measured."""
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    """None where the paper has the cell and we do not know its number."""


class Table(Settings):
    """A table of the paper, or another place with numbers."""

    title: str
    """What it compares."""
    location: str
    """Where it is, in a few words."""
    source: Literal["abstract", "poster", "readme"]
    """The document that we read it in."""
    assumed: tuple[Literal["detector", "backbone", "schedule", "scale"], ...] = ()
    """Settings that the source does not give and we assumed."""
    devices: Annotated[int, Field(gt=0)] | None = None
    """GPUs, where hours are given."""
    hardware: str = ""
    """What the GPUs are, where hours are given."""
    cells: Annotated[tuple[Cell, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _expand_cells(cls, raw: Any) -> Any:
        """In the file a cell has a training's keys (``of`` holds those that all cells share) and numbers by metric."""
        if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list):
            return raw
        raw = dict(raw)
        shared, cells = raw.pop("of", {}), []
        for i, row in enumerate(raw["cells"]):
            if not isinstance(row, dict) or not isinstance(shared, dict) or not row.keys() & set(METRICS):
                raise ValueError(f"cell {i + 1} has no number: it needs one of {', '.join(METRICS)}")
            training = shared | {key: value for key, value in row.items() if key not in METRICS}
            cells += [{"training": training, "metric": x, "value": row[x]} for x in row if x in METRICS]
        return raw | {"cells": cells}

    @model_validator(mode="after")
    def _no_cell_twice(self) -> Self:
        seen = set()
        for cell in self.cells:
            key = (cell.training, cell.metric)
            if key in seen:
                raise ValueError(f"{cell.training.name} has {cell.metric} twice")
            seen.add(key)
        return self

    @property
    def trainings(self) -> list[Training]:
        """The trainings of its cells, each once, in order."""
        return list(dict.fromkeys(cell.training for cell in self.cells))

    @property
    def metrics(self) -> list[MetricName]:
        return list(dict.fromkeys(cell.metric for cell in self.cells))

    def value(self, training: Training, metric: str) -> float | None:
        """The number of a cell; None where there is none."""
        return next((x.value for x in self.cells if x.training == training and x.metric == metric), None)

    def assumptions(self, training: Training) -> str:
        """The assumed settings of a training, such as ``R-50 1x``; empty where nothing was."""
        titles = {
            "detector": DETECTORS[training.detector],
            "backbone": BACKBONES[training.backbone],
            "schedule": training.schedule,
            "scale": training.scale,
        }
        return " ".join(titles[key] for key in self.assumed)


class Paper(Settings):
    """The whole file; tables by name, in its order."""

    title: str
    """The paper's."""
    arxiv: Annotated[str, BeforeValidator(str)]
    """Its number there."""
    sources: dict[Literal["abstract", "poster", "readme"], str]
    """The documents that numbers were read in."""
    metrics: dict[MetricName, Metric]
    """What each name of a metric means."""
    tables: dict[str, Table]
    """By name."""
    published: tuple[Published, ...] = ()
    """Results that other methods' authors report."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, table in self.tables.items():
            if table.source not in self.sources:
                raise ValueError(f"tables.{name}: source {table.source} is not among the sources")
            missing = [x for x in table.metrics if x not in self.metrics]
            if missing:
                raise ValueError(f"tables.{name}: metric {missing[0]} is not among the metrics")
        return self

    def published_of(self, method: str) -> tuple[Published, ...]:
        """Results that a method's authors report: the figures here, and those that its class brings."""
        here = tuple(x for x in self.published if x.method == method)
        return (*here, *method_class(method).published)

    def first_value(
        self, training: Training, metric: str, exclude_tables: Iterable[str] = ()
    ) -> tuple[float, str] | None:
        """The first known number of a training and its location, from all tables but ``exclude_tables``."""
        for name, table in self.tables.items():
            value = None if name in exclude_tables else table.value(training, metric)
            if value is not None:
                return value, table.location
        return None


def read(path: Traversable) -> Paper:
    """Read a file of that form. Raises InputError, one line, naming the file and the place in it."""
    try:
        # libyaml takes a tenth of the time of the parser in Python, which every command would wait for.
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(
            f"{path}:{mark.line + 1 if mark else '?'}: not YAML ({getattr(error, 'problem', error)})"
        ) from None
    try:
        return Paper.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from None


@cache
def paper() -> Paper:
    """The suite's own ``lgd/config/paper.yaml``."""
    return read(resources.files("lgd.config") / "paper.yaml")
