"""What a training may have by mistake: settings that are allowed, but rarely meant."""

from __future__ import annotations

from lgd.config.detector import NO_WEIGHTS
from lgd.config.experiment import Experiment
from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.config.schedule import PAPER_BATCH

LARGE_ADAMW_RATE = 2e-3
"""For 16 images: twenty times the rate that Swin's authors publish."""

RCNN_SETTINGS = "method.context=false method.detach_appearance=true"
"""Those of the paper's LGD with R-CNNs (lgd/config/paper_recipes.py)."""


def warnings_of(experiment: Experiment) -> list[str]:
    """A line each: on the learning rate, a frozen phase from scratch, another detector's settings of LGD,
    a teacher that is no better than its student."""
    checks = (_rate_of_adamw, _frozen_from_scratch, _of_rcnn, _equal_teacher)
    return [x for x in (experiment.schedule.lr_warning, *(check(experiment) for check in checks)) if x]


def has_rcnn_settings(experiment: Experiment) -> bool:
    """Whether LGD's settings, where it is the method, are what the paper has with R-CNNs."""
    return not getattr(experiment.method, "context", False)


def _rate_of_adamw(experiment: Experiment) -> str:
    schedule = experiment.schedule
    if schedule.optimizer != "adamw" or schedule.resolved_lr * PAPER_BATCH / schedule.batch < LARGE_ADAMW_RATE:
        return ""
    return (
        f"schedule.lr {schedule.resolved_lr:g} is a rate for SGD: schedule.optimizer=adamw takes about 1e-4 for"
        f" {PAPER_BATCH} images (schedule.lr_per_16)"
    )


def _frozen_from_scratch(experiment: Experiment) -> str:
    method, schedule = experiment.method, experiment.schedule
    if not method.phases(schedule).frozen_until or experiment.detector.initial_weights != NO_WEIGHTS:
        return ""
    return (
        f"schedule.frozen {schedule.frozen:.2g}: the backbone has random values, and {method.name} leaves them so for"
        " that part of the training, where a baseline trains them: set schedule.frozen=0"
    )


def _of_rcnn(experiment: Experiment) -> str:
    detector = experiment.detector
    if not detector.is_built_in or not detector.is_rcnn or has_rcnn_settings(experiment):
        return ""
    return (
        f"method.context with {detector.name}: the paper's LGD has {RCNN_SETTINGS} there (--detector {detector.name})"
    )


def _equal_teacher(experiment: Experiment) -> str:
    method = experiment.method
    if not isinstance(method, FrozenTeacherMethod) or not (method.teacher_must_lead and method.teacher.gate):
        return ""
    given, teacher = method.teacher, experiment.teacher
    # Who names its backbone or its length has chosen.
    if given.backbone is not None or given.steps is not None or teacher is None:
        return ""
    if teacher.detector != experiment.detector:
        return ""
    return (
        f"the teacher of {method.name} is the student's own network, trained as long: it is refused unless its AP is"
        " above the plain student's; name a larger one (method.teacher.detector, .overrides, .backbone or .weights)"
    )
