"""What a training may have by mistake: settings that are allowed, but rarely meant."""

from __future__ import annotations

from lgd.config.detector import NO_WEIGHTS
from lgd.config.experiment import Experiment
from lgd.config.frozen_teacher import FrozenTeacherMethod

RCNN_SETTINGS = "method.context=false method.detach_appearance=true"
"""Those of the paper's LGD with R-CNNs (lgd/config/paper_recipes.py)."""


def warnings_of(experiment: Experiment) -> list[str]:
    """A line each: on the learning rate, a frozen phase from scratch, another detector's settings of LGD,
    a teacher that is no better than its student."""
    found = [experiment.schedule.lr_warning, *(x(experiment) for x in (_frozen_from_scratch, _of_rcnn, _equal_teacher))]
    return [x for x in found if x]


def has_rcnn_settings(experiment: Experiment) -> bool:
    """Whether LGD's settings, where it is the method, are what the paper has with R-CNNs."""
    method = experiment.method.model_dump()
    return method["name"] != "lgd" or not method["context"]


def _frozen_from_scratch(experiment: Experiment) -> str:
    until = experiment.method.phases(experiment.schedule).frozen_until
    if not until or experiment.detector.initial_weights != NO_WEIGHTS:
        return ""
    return (
        f"schedule.frozen {experiment.schedule.frozen:g}: the backbone has random values, and {experiment.method.name}"
        f" leaves them for {until:,} steps, which a baseline trains: set schedule.frozen=0"
    )


def _of_rcnn(experiment: Experiment) -> str:
    detector = experiment.detector
    if not detector.is_built_in or not detector.is_rcnn or has_rcnn_settings(experiment):
        return ""
    return (
        f"method.context with {detector.name}: the paper's LGD has {RCNN_SETTINGS} there, as --detector {detector.name}"
    )


def _equal_teacher(experiment: Experiment) -> str:
    method = experiment.method
    if not isinstance(method, FrozenTeacherMethod) or not (method.teacher_must_lead and method.teacher.gate):
        return ""
    teacher = experiment.teacher
    if teacher is None or teacher.detector != experiment.detector or teacher.schedule.steps > experiment.schedule.steps:
        return ""
    return (
        f"the teacher of {method.name} is the student's own network, trained as long: it is refused unless its AP is"
        " above the plain student's; name a larger one (method.teacher.detector, .overrides, .backbone or .weights)"
    )
