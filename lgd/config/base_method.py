"""What a training method says of itself: its settings and, for everything else, what it is made of.

``Experiment.method`` is a :class:`Method`; which class it is follows from ``method.name`` (lgd/config/method.py). This
module and every built-in method's class load without torch: reading a record with any of them must not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lgd.config.detector import Detector
from lgd.config.phases import Phases
from lgd.config.published import Published
from lgd.config.schedule import Schedule
from lgd.config.settings import NonNegative, Settings


@dataclass(frozen=True)
class TeacherTraining:
    """How the training that a method needs before differs from the student's."""

    method: Mapping[str, Any]
    """Settings of its method, the name among them."""
    detector: Detector
    seed: int
    steps: int | None = None
    """None: the student's."""
    milestones: tuple[float, ...] | None = None
    """When its learning rate drops, as ``schedule.milestones``; None: the student's, fractions of its own steps."""


class Method(Settings):
    """A way to train a detector. Fields are its settings (``--set method.weight=...``), all with defaults.

    A subclass is the one place that says what a method is (docs/own-method.md). The class variables are texts for
    tables and help.
    """

    name: str = ""
    """Which method: one of ours, the name of an entry point, or ``package.module:Class``."""

    if TYPE_CHECKING:
        # A type checker cannot know which method ``experiment.method`` is, and so which settings it has.
        def __getattr__(self, name: str) -> Any: ...

    title: ClassVar[str]
    """As tables write it."""
    paper: ClassVar[str] = ""
    """Where it was published: authors, title, venue."""
    learns_from: ClassVar[str] = ""
    """Where what the student learns from comes from, in a few words."""
    compares: ClassVar[str] = ""
    """Its distance, in a few words."""
    student_head_reads: ClassVar[str] = "the student's features"
    """The inputs of the student's head in training, in a few words."""
    activations: ClassVar[float] = 2.4
    """What a forward pass keeps for the backward pass, as a multiple of the outputs of the layers of backbone and FPN
    (lgd/training/memory_need.py). The baseline's and LGD's are measured on RetinaNet R-50 with
    ``torch.autograd.graph.saved_tensors_hooks`` (2.15 and 2.82; FCOS 2.33 and 3.19). By default a frozen teacher, which
    keeps nothing, and a little for adapters and masks."""

    has_distillation: ClassVar[bool] = True
    """Whether the student learns from anything but the labels."""
    has_teacher_ap: ClassVar[bool] = False
    """Whether the student's head is trained on the teacher's features too, so that these can be evaluated."""
    published: ClassVar[tuple[Published, ...]] = ()
    """Results that its authors report. Of our own methods lgd/config/paper.yaml has it."""
    teacher_steps_key: ClassVar[str] = ""
    """The setting that holds the steps of the training before (``method.teacher.steps``), where there is one."""
    keeps_teacher: ClassVar[bool] = False
    """Whether the model's ``teacher`` is left as ``teacher.pth`` beside ``student.pth``, for a training of another
    method that starts from this one's."""

    @property
    def additions(self) -> list[str]:
        """The settings that are not the method's authors' but ours, as words; empty for the published method."""
        return []

    @property
    def label(self) -> str:
        """Its name, with ``additions``: what a training of it is called where it is no arm of a grid."""
        return f"{self.name} (ours: {', '.join(self.additions)})" if self.additions else self.name

    def teacher_lr_factor(self, student_lr: float) -> float:
        """Learning rate of the teacher's parameters, divided by the student's."""
        return 1.0

    @property
    def adapter_lr_factor(self) -> float:
        """Learning rate of the distance's parameters, divided by the student's."""
        return 1.0

    @property
    def teacher_has_adamw(self) -> bool:
        """Whether the teacher's parameters are trained with AdamW; False: with SGD, as the student's."""
        return False

    def phases(self, schedule: Schedule) -> Phases:
        """When it begins and ends, and until when the bottom-up network is frozen. Default: all the time, never."""
        return Phases()

    def refusal(self, student: Detector, schedule: Schedule) -> str:
        """Why it cannot be trained on this detector, in one line; empty where it can."""
        return ""

    def teacher_detector(self, student: Detector) -> Detector | None:
        """The frozen detector that ``Parts.frozen_detector`` gives ``build``; None where the method has none."""
        return None

    def teacher_training(self, student: Detector, schedule: Schedule) -> TeacherTraining | None:
        """The training that must be done before; None where there is none."""
        return None

    def build(self, parts: Any) -> Any:
        """The model that is trained, from :class:`lgd.methods.parts.Parts`."""
        raise NotImplementedError


class DistillationMethod(Method):
    """A method with a distillation loss."""

    distill_weight: NonNegative = 1.0
    """Factor of the distillation loss, besides the method's own weights."""
