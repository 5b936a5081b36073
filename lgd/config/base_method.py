"""What a training method says of itself: its settings and, for everything else, what it is made of.

``Experiment.method`` is a :class:`Method`; which class it is follows from ``method.name`` (lgd/config/method.py). This
module and every built-in method's class load without torch: reading a record with any of them must not.
"""

from __future__ import annotations

from typing import Any, ClassVar

from lgd.config.detector import Detector
from lgd.config.phases import Phases
from lgd.config.schedule import Schedule
from lgd.config.settings import NonNegative, Settings


class Method(Settings):
    """A way to train a detector. Fields are its settings (``--set method.weight=...``), all with defaults.

    A subclass is the one place that says what a method is (docs/own-method.md). The class variables are texts for
    tables and help.
    """

    name: str = ""
    """Which method: one of ours, the name of an entry point, or ``package.module:Class``."""

    title: ClassVar[str]
    """As tables write it."""
    paper: ClassVar[str] = ""
    """Where it was published: authors, title, venue."""
    learns_from: ClassVar[str] = ""
    """Where what the student learns from comes from, in a few words."""
    compares: ClassVar[str] = ""
    """Its distance, in a few words."""
    student_head_reads: ClassVar[str] = "the student's features"
    """What goes through the student's head in training, in a few words."""
    activations: ClassVar[float] = 2.4
    """What a forward pass keeps for the backward pass, as a multiple of the outputs of the layers of backbone and FPN
    (lgd/training/memory_need.py)."""

    def phases(self, schedule: Schedule) -> Phases:
        """When it begins and ends, and until when the bottom-up network rests. Default: all the time, never."""
        return Phases()

    def refusal(self, student: Detector, schedule: Schedule) -> str:
        """Why it cannot be trained on this detector, in one line; empty where it can."""
        return ""

    def teacher_detector(self, student: Detector) -> Detector | None:
        """The frozen detector that ``Parts.frozen_detector`` gives ``build``; None where the method has none."""
        return None

    def teacher_changes(self, student: Detector) -> dict[str, Any] | None:
        """The training that must be done before: how it differs from the student's; None where there is none.

        ``method`` (as plain data) and, where they differ, ``detector``, ``seed``, ``steps`` (None: the student's).
        """
        return None

    def build(self, parts: Any) -> Any:
        """The model that is trained, from :class:`lgd.methods.parts.Parts`."""
        raise NotImplementedError


class DistillationMethod(Method):
    """A method with a distillation loss."""

    distill_weight: NonNegative = 1.0
    """Factor of the distillation loss, besides the method's own weights."""
