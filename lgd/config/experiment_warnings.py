"""What a training may have by mistake: settings that are allowed, but rarely meant."""

from __future__ import annotations

from lgd.config.detector import NO_WEIGHTS
from lgd.config.experiment import Experiment

RCNN_SETTINGS = "method.context=false method.detach_appearance=true"
"""Those of the paper's LGD with R-CNNs (lgd/config/paper_recipes.py)."""


def warnings_of(experiment: Experiment) -> list[str]:
    """A line each: on the learning rate, on a frozen phase from scratch, on the teacher's settings of another detector."""
    return [x for x in (experiment.schedule.lr_warning, _frozen_from_scratch(experiment), _of_rcnn(experiment)) if x]


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
