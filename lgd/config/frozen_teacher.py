"""Settings of the methods whose student learns from a trained detector: which one, and what is taken from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import field_validator

from lgd.config.base_method import DistillationMethod, TeacherTraining
from lgd.config.detector import NO_WEIGHTS, Backbone, Detector, Weights
from lgd.config.detector_source import kind_of, runs_code
from lgd.config.schedule import Schedule
from lgd.config.settings import AUTO_IS_NONE, CHANGES_NO_RESULT, NonNegative, NonNegativeInt, PositiveInt, Settings
from lgd.errors import InputError
from lgd.files import read_file

BUILT_IN_DETECTORS: tuple[str, ...] = get_args(Detector.model_fields["name"].annotation)

Inherit = Literal["none", "fpn", "fpn_and_head"]
"""The part of the student that starts from the teacher's weights."""

_DEEPER = {
    "resnet18": "resnet34",
    "resnet34": "resnet50",
    "resnet50": "resnet101",
    "resnet101": "resnext101_32x8d",
    "swin_t": "resnet101",
    "timm:tf_efficientnet_lite0": "timm:tf_efficientnet_lite2",
    "timm:tf_efficientnet_lite1": "timm:tf_efficientnet_lite2",
}
"""The backbone of the teacher, by that of the student, where nothing is said."""

_IMAGENET = {
    "resnet50": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "resnet101": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
    "resnext101_32x8d": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
}


class TeacherSettings(Settings):
    """The frozen teacher: a detector that is trained before the student, once for all seeds, or given as a file."""

    detector: Annotated[str | None, AUTO_IS_NONE] = None
    """A built-in detector's name, or a source as ``detector.source``; None ("auto"): the one that was exported with
    ``weights``, else the student's. Levels and strides of its pyramid must be the student's."""
    overrides: tuple[str, ...] = ()
    """Overrides of a foreign teacher, ``key=value``, as ``detector.overrides``; they add to the student's where both
    are from the same source (``MODEL.RESNETS.DEPTH=101``)."""
    backbone: Annotated[Backbone | None, AUTO_IS_NONE] = None
    """Its backbone; None ("auto"): the next deeper one than the student's, with weights where that has weights."""
    steps: Annotated[PositiveInt | None, AUTO_IS_NONE] = None
    """Steps of its training; None ("auto"): the student's. All else of its training is the student's."""
    seed: NonNegativeInt = 0
    """Seed of its training. It does not follow the student's, so that all seeds share one teacher."""
    weights: Weights = NO_WEIGHTS
    """A trained detector that is the teacher, in place of a training: an exported ``student.pth``, another file or a
    ``detectron2://`` model."""
    hours: Annotated[NonNegative | None, AUTO_IS_NONE] = None
    """Device-hours of the training of ``weights``, for the cost tables; None ("auto"): unknown, and marked so there."""
    gate: Annotated[bool, CHANGES_NO_RESULT] = True
    """Train no student from a teacher that is no better than a plain student, or under ``floor``; off: train anyway."""
    floor: Annotated[NonNegative, CHANGES_NO_RESULT] = 1.0
    """Box AP, percent, that the teacher must reach where the plain student's is not known."""

    @field_validator("detector")
    @classmethod
    def _is_a_detector(cls, value: str | None) -> str | None:
        if value is not None and value not in BUILT_IN_DETECTORS:
            try:
                kind_of(value)
            except InputError as error:
                raise ValueError(f"one of {', '.join(BUILT_IN_DETECTORS)}, or {error}") from None
        return value

    @property
    def is_given(self) -> bool:
        """Whether a trained detector is given, so that none is trained."""
        return self.weights != NO_WEIGHTS


class FrozenTeacherMethod(DistillationMethod):
    """A method whose student learns from a frozen detector."""

    teacher: TeacherSettings = TeacherSettings()
    """The frozen detector, and how it is trained first."""
    inherit: Inherit = "none"
    """The part of the student that starts from the teacher's weights instead of random ones."""

    authors_inherit: ClassVar[Inherit] = "none"
    """The part that the authors' own trainings inherit."""
    teacher_steps_key: ClassVar[str] = "method.teacher.steps"
    teacher_must_lead: ClassVar[bool] = True
    """Whether a teacher that is no better than a plain student is of no use to the method."""

    def resolved_backbone(self, student: Detector) -> Backbone:
        """Backbone of the teacher of this student."""
        return self.teacher.backbone or deeper(student.backbone)

    def teacher_detector(self, student: Detector) -> Detector:
        """The teacher of this student. Reads ``student.json`` beside a given teacher's file, where there is one."""
        own = self.teacher
        exported = exported_detector(own.weights) if own.detector is None and own.backbone is None else None
        if exported is not None:
            return Detector.model_validate(exported.model_dump() | {"weights": own.weights})
        wanted = own.detector or (student.name if student.is_built_in else student.source)
        if wanted not in BUILT_IN_DETECTORS:
            same = student.model_dump() if wanted == student.source else {"source": wanted}
            overrides = (*same.get("overrides", ()), *own.overrides)
            weights = {"weights": own.weights} if own.is_given else {}
            return Detector.model_validate(same | {"overrides": overrides} | weights)
        if own.overrides:
            raise ValueError(f"method.teacher.overrides are for a teacher from elsewhere, and this one is {wanted}")
        described = student.model_dump() if student.is_built_in else {}
        backbone = self.resolved_backbone(student)
        # A teacher that is the student's equal starts where the student and the baseline do.
        is_equal = student.is_built_in and wanted == student.name and backbone == student.backbone
        start = student.weights if is_equal and not own.is_given else own.weights
        changes = {"backbone": backbone.model_dump(), "weights": start, "name": wanted}
        return Detector.model_validate(described | changes)

    def teacher_training(self, student: Detector, schedule: Schedule) -> TeacherTraining | None:
        if self.teacher.is_given:
            return None
        detector = self.teacher_detector(student)
        return TeacherTraining({"name": "baseline"}, detector, self.teacher.seed, self.teacher.steps)


def exported_detector(weights: str) -> Detector | None:
    """The detector that an exported student's ``student.json`` describes; None where ``weights`` is no such student's.

    Not one whose building runs code that only a file names. Raises InputError for a description that cannot be read.
    """
    path = Path(weights).with_name("student.json")
    if weights == NO_WEIGHTS or "://" in weights or not path.is_file():
        return None
    try:
        found = Detector.model_validate(json.loads(read_file(path))["experiment"]["detector"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not the description of a student ({' '.join(str(error).split())[:100]})") from None
    if not found.is_built_in and runs_code(found.source):
        raise InputError(f"{path} names {found.source}, which is code: say so with method.teacher.detector")
    return found


def deeper(backbone: Backbone) -> Backbone:
    """The next deeper backbone, else the same; with ImageNet weights of the same origin where ``backbone`` has such."""
    if backbone.name not in _DEEPER:
        return backbone
    name = _DEEPER[backbone.name]
    weights = _same_origin(backbone, name)
    changes: dict[str, object] = {"name": name, "weights": weights}
    if backbone.deformable and name not in _IMAGENET:
        changes["deformable"] = False
    if backbone.name == "swin_t" or (weights == NO_WEIGHTS and not backbone.from_scratch):
        # What a backbone from scratch cannot have, or another kind does not know.
        changes |= {"norm": "auto", "freeze_at": "auto", "pixel_std": "auto"}
    elif weights.partition(":")[0] != backbone.weights.partition(":")[0]:
        # Those of another origin were trained with other statistics.
        changes["pixel_std"] = "auto"
    return Backbone.model_validate(backbone.model_dump() | changes)


def _same_origin(backbone: Backbone, name: str) -> str:
    """ImageNet weights of the backbone ``name`` from where those of ``backbone`` are; "none" where there are none."""
    own = backbone.weights
    if backbone.name == "swin_t" and own.startswith("torchvision://"):
        return f"torchvision://{name}"
    if own.startswith(("torchvision://", "package:efficientnet-")) or own == "timm":
        model, other = (x.removeprefix("timm:tf_").replace("_", "-") for x in (backbone.name, name))
        return own.replace(backbone.name, name).replace(model, other) if model in own or own == "timm" else NO_WEIGHTS
    return NO_WEIGHTS if backbone.from_scratch else _IMAGENET.get(name, NO_WEIGHTS)
