"""One distiller for every detector: run it, teach, run it again on what was taught, compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, cast

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from lgd.config.phases import Phases
from lgd.methods.feature_capture import (
    FeatureCapture,
    Features,
    capture_features,
    inject_features,
    patched_method,
)
from lgd.methods.shared_head import TwoPasses

Batch = Sequence[dict[str, Any]]
"""What detectron2's data loaders yield: one dict an image, with ``image`` and, in training, ``instances``."""


class Teacher(Protocol):
    """Where the features to learn from come from. ``replays``: they go through the student's head as well."""

    uses_student_head: bool

    def __call__(self, capture: FeatureCapture, instances: Sequence[Any]) -> Features: ...


class Distance(Protocol):
    """How the student's features are compared with the taught ones, near the objects or everywhere.

    ``adapts_alone``: its own parameters go on training while the student does not learn from it (see Phases).
    """

    trains_adapter_alone: bool

    def __call__(
        self, student: Mapping[str, Tensor], teacher_features: Mapping[str, Tensor], instances: Sequence[Any]
    ) -> Tensor: ...


class Distiller(nn.Module):
    """A detector with a teacher beside it.

    In training it returns the detector's losses under their own names, those of the taught features under
    ``instructive/`` (where the teacher replays them) and the distance as ``loss_distill``, each already weighted: their
    sum is what LGD minimises (METHOD: total = L_det(student) + L_det(instructive) + lambda * L_distill). In evaluation
    it is the detector alone.

    student: any detectron2 detector that reads ``self.backbone(images.tensor)``, unmodified.
    distill_weight: lambda. instructive_weight: factor of the second detection loss. joint, repeats: both passes go
    through the head in one batch, and the second repeats what the first worked out of images and labels (see
    lgd/methods/shared_head.py); with False they do not, which is the same but slower.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distance: nn.Module,
        *,
        phases: Phases,
        distill_weight: float = 1.0,
        instructive_weight: float = 1.0,
        joint: bool = True,
        repeats: bool = True,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.distance = distance
        self.phases = phases
        self.distill_weight = distill_weight
        self.instructive_weight = instructive_weight
        self.joint = joint
        self.repeats = repeats

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    @property
    def _backbone(self) -> nn.Module:
        return cast(nn.Module, self.student.backbone)

    def forward(self, batch: Batch) -> Any:
        """Losses by name (scalars) in training; the student's detections in evaluation."""
        if not self.training:
            return self.student(batch)
        batch = on_device(batch, self.device)
        instances = [x["instances"] for x in batch]
        teacher, distance = cast(Teacher, self.teacher), cast(Distance, self.distance)
        storage = get_event_storage()
        distils = self.phases.distills_student(storage.iter)
        compares = distils or distance.trains_adapter_alone

        with ExitStack() as stack:
            capture = stack.enter_context(capture_features(self._backbone))
            passes = TwoPasses(
                self.student, capture, lambda: teacher(capture, instances), joint=self.joint, repeats=self.repeats
            )
            if teacher.uses_student_head:
                stack.enter_context(passes.first())
            losses: dict[str, Tensor] = dict(self.student(batch))
        if teacher.uses_student_head:
            with (
                storage.name_scope("instructive"),
                inject_features(self._backbone, passes.teacher_features),
                passes.second(),
            ):
                second = self.student(batch)
            losses |= {f"instructive/{name}": self.instructive_weight * x for name, x in second.items()}
        if compares:
            features = capture.features if distils else {name: x.detach() for name, x in capture.features.items()}
            losses["loss_distill"] = self.distill_weight * distance(features, passes.teacher_features, instances)
        else:
            losses["loss_distill"] = self._nothing()
        return losses

    def _nothing(self) -> Tensor:
        """Zero, with a zero gradient for each of the distance's parameters: workers wait for those that have none."""
        nothing = torch.zeros((), device=self.device)
        for parameter in self.distance.parameters():
            nothing = nothing + parameter.flatten()[:0].sum()
        return nothing

    @contextmanager
    def detecting_from_teacher(self) -> Iterator[None]:
        """Inside the block, evaluation detects from the instructive features (teacher AP).

        The batches must then carry their labels (``instances``), as in training. Raises ValueError where the teacher's
        features are not meant for the student's head.
        """
        teacher = cast(Teacher, self.teacher)
        if not teacher.uses_student_head:
            raise ValueError(f"the student's head cannot detect from the features of a {type(teacher).__name__}")
        own_forward = self.student.forward

        def detect(batch: Batch) -> Any:
            batch = on_device(batch, self.device)
            with capture_features(self._backbone) as capture:
                own_forward(batch)
            with inject_features(self._backbone, teacher(capture, [x["instances"] for x in batch])):
                return own_forward(batch)

        with patched_method(self.student, "forward", detect):
            yield


def student_of(model: nn.Module) -> nn.Module:
    """The plain detector inside ``model`` (itself when there is no teacher)."""
    return model.student if isinstance(model, Distiller) else model


def on_device(batch: Batch, device: torch.device) -> list[dict[str, Any]]:
    """A batch with its images and instances moved, without a wait for each: the detector's own way has one."""
    return [
        {
            name: x.to(device, non_blocking=True) if name == "image" else _instances_to(x, device)
            for name, x in y.items()
        }
        for y in batch
    ]


def is_batch(value: Any) -> bool:
    """Whether it is what detectron2's loaders yield; a model of other making may read something else."""
    return isinstance(value, (list, tuple)) and all(isinstance(x, dict) for x in value)


def _instances_to(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Instances):
        return value
    moved = Instances(value.image_size)
    for name, field in value.get_fields().items():
        if isinstance(field, Boxes):
            field = Boxes(field.tensor.to(device, non_blocking=True))
        elif isinstance(field, Tensor):
            field = field.to(device, non_blocking=True)
        elif hasattr(field, "to"):
            field = field.to(device)
        moved.set(name, field)
    return moved
