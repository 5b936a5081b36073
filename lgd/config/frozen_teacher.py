"""Settings of the methods whose student learns from a trained detector: which one, and what is taken from it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from lgd.config.base_method import DistillationMethod, TeacherTraining
from lgd.config.detector import NO_WEIGHTS, Backbone, Detector, Weights
from lgd.config.schedule import Schedule
from lgd.config.settings import AUTO_IS_NONE, NonNegative, NonNegativeInt, PositiveInt, Settings

Inherit = Literal["none", "fpn", "fpn_and_head"]
"""What of the student starts from the teacher's weights."""

_DEEPER = {
    "resnet18": "resnet34",
    "resnet34": "resnet50",
    "resnet50": "resnet101",
    "resnet101": "resnext101_32x8d",
    "swin_t": "resnet101",
}
"""The backbone of the teacher, by that of the student, where nothing is said."""

_IMAGENET = {
    "resnet50": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "resnet101": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
    "resnext101_32x8d": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
}


class TeacherSettings(Settings):
    """The frozen teacher: a detector that is trained before the student, once for all seeds, or given as a file."""

    detector: Annotated[
        Literal["retinanet", "fcos", "faster_rcnn", "mask_rcnn", "atss", "poto"] | None, AUTO_IS_NONE
    ] = None
    """Its family; None ("auto"): the student's. Levels and strides of its pyramid must be the student's."""
    backbone: Annotated[Backbone | None, AUTO_IS_NONE] = None
    """Its backbone; None ("auto"): the next deeper one than the student's, with weights where that has weights."""
    steps: Annotated[PositiveInt | None, AUTO_IS_NONE] = None
    """Steps of its training; None ("auto"): the student's. All else of its training is the student's."""
    seed: NonNegativeInt = 0
    """Seed of its training. It does not follow the student's, so that all seeds share one teacher."""
    weights: Weights = NO_WEIGHTS
    """A trained detector that is the teacher, in place of a training: a file or a ``detectron2://`` model."""
    hours: Annotated[NonNegative | None, AUTO_IS_NONE] = None
    """Device-hours of the training of ``weights``, for the cost tables; None ("auto"): unknown, and marked so there."""
    gate: bool = True
    """Train no student from a teacher that is no better than a plain student, or under ``floor``; off: train anyway."""
    floor: NonNegative = 1.0
    """Box AP, percent, that the teacher must reach where the plain student's is not known."""


class FrozenTeacherMethod(DistillationMethod):
    """A method whose student learns from a frozen detector."""

    teacher: TeacherSettings = TeacherSettings()
    inherit: Inherit = "none"
    """What of the student starts from the teacher's weights instead of random ones."""

    authors_inherit: ClassVar[Inherit] = "none"
    """What the authors' own trainings inherit."""

    def resolved_backbone(self, student: Detector) -> Backbone:
        """Backbone of the teacher of this student."""
        return self.teacher.backbone or deeper(student.backbone)

    def teacher_detector(self, student: Detector) -> Detector:
        """The teacher of this student."""
        own, described = self.teacher, student.model_dump()
        backbone = self.resolved_backbone(student).model_dump()
        described |= {"backbone": backbone, "weights": own.weights, "name": own.detector or student.name}
        return Detector.model_validate(described)

    def teacher_training(self, student: Detector, schedule: Schedule) -> TeacherTraining | None:
        if self.teacher.weights != NO_WEIGHTS:
            return None
        detector = self.teacher_detector(student)
        return TeacherTraining({"name": "baseline"}, detector, self.teacher.seed, self.teacher.steps)


def deeper(backbone: Backbone) -> Backbone:
    """The next deeper backbone, else the same; with pretrained weights where ``backbone`` has such."""
    name = _DEEPER.get(backbone.name, backbone.name)
    weights = NO_WEIGHTS if backbone.from_scratch else _IMAGENET.get(name, NO_WEIGHTS)
    deformable = backbone.deformable and name in _IMAGENET
    norm = "auto" if backbone.name == "swin_t" else backbone.norm
    return Backbone.model_validate(
        backbone.model_dump() | {"name": name, "weights": weights, "deformable": deformable, "norm": norm}
    )
