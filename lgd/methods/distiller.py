"""Distillation for any detectron2 detector: its own forward pass, one on the teacher's features, and their distance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from lgd.config.phases import Phases, WatchedPhases
from lgd.distributed import shares
from lgd.errors import InputError
from lgd.methods.channel_adapters import ChannelAdapters
from lgd.methods.feature_capture import (
    FeatureCapture,
    Features,
    capture_features,
    inject_features,
    patched_method,
)
from lgd.methods.norm_statistics import SecondStatistics, tracking_norms
from lgd.methods.shared_head import TwoForwardPasses
from lgd.methods.teacher_watch import TeacherWatch

Batch = Sequence[dict[str, Any]]
"""A batch of detectron2's data loaders: one dict an image, with ``image`` and, in training, ``instances``."""


class Teacher(Protocol):
    """Computes the features that the student learns from."""

    uses_student_head: bool
    """Whether they go through the student's head too, with a detection loss of their own."""

    def __call__(self, capture: FeatureCapture, instances: Sequence[Any]) -> Features: ...


class Distance(Protocol):
    """The distillation loss between the student's features and the teacher's."""

    trains_on_detached_features: bool
    """Whether its own parameters train outside the distillation phase too, on the student's features detached."""

    def __call__(
        self,
        student: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        instances: Sequence[Any],
        image_size: tuple[int, int],
    ) -> Tensor:
        """The loss, a scalar in float32. Features are by level, (B, C, h, w), finest first; the teacher's get no
        gradient. instances: detectron2's, with ``gt_boxes`` in pixels of the padded batch image, whose height and width
        are ``image_size``, and ``gt_classes``."""
        ...


class TrainingModel(nn.Module):
    """A student with what trains it: in evaluation it is the student alone, and only the student is exported.

    A subclass's ``losses`` gets a batch on the student's device and returns losses by name, already weighted: the
    student's own under their own names. ``teacher`` and ``distance`` are the parts that are dropped after training,
    whose parameters are trained at the rate of ``method.lr_factor``. phases: when distillation begins and ends.
    """

    def __init__(self, student: nn.Module, *, phases: Phases) -> None:
        super().__init__()
        self.student = student
        self.phases = phases

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    @property
    def detectors(self) -> tuple[nn.Module, ...]:
        """The detectors that are trained: the student and, in a subclass, others after it."""
        return (self.student,)

    def distills_student(self, iteration: int) -> bool:
        """Whether the distillation loss reaches the student at ``iteration``, counted from 0."""
        return self.phases.distills_student(iteration)

    def forward(self, batch: Batch) -> Any:
        """Losses by name (scalars) in training; the student's detections in evaluation."""
        if not self.training:
            return self.student(batch)
        return self.losses(prepare_batch(self.student, batch_to_device(batch, self.device)))

    def losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        raise NotImplementedError


class Distiller(TrainingModel):
    """A detector (the student) with a teacher.

    In training it returns the detector's losses under their own names, those of the teacher's features under
    ``instructive/`` (where ``teacher.uses_student_head``) and ``loss_distill``, each already weighted: their sum is
    what LGD minimises (docs/method.md, "The losses"). In evaluation it is the detector alone.

    student: any detectron2 detector that calls ``self.backbone(images.tensor)``, unmodified. distill_weight: lambda.
    instructive_weight: factor of the teacher's features' detection losses. joint_head, cache_targets: compute what both
    passes share once (lgd/methods/shared_head.py); False gives the same losses, slower. channel_adapters: through which
    teacher and distance see the student's features, where levels have different numbers of channels.
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
        joint_head: bool = True,
        cache_targets: bool = True,
        channel_adapters: ChannelAdapters | None = None,
    ) -> None:
        super().__init__(student, phases=phases)
        self.teacher = teacher
        self.distance = distance
        self.distill_weight = distill_weight
        self.instructive_weight = instructive_weight
        self.joint_head = joint_head
        self.cache_targets = cache_targets
        self.channel_adapters = channel_adapters
        # A head with batch norms is seldom: without, nothing is added to what is trained and saved.
        norms = tracking_norms(student, self._backbone) if cast(Teacher, teacher).uses_student_head else []
        self.second_statistics = SecondStatistics(norms) if norms else None
        self._watch = TeacherWatch() if cast(Teacher, teacher).uses_student_head else None

    @property
    def watch(self) -> TeacherWatch | None:
        """Whether the teacher is better than the student; None where its features have no detection loss."""
        return self._watch

    def distills_student(self, iteration: int) -> bool:
        if isinstance(self.phases, WatchedPhases) and self._watch is not None and not self._watch.teacher_is_ahead:
            return False
        return self.phases.distills_student(iteration)

    @property
    def _backbone(self) -> nn.Module:
        return cast(nn.Module, self.student.backbone)

    def losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        instances = [x["instances"] for x in batch]
        teacher, distance = cast(Teacher, self.teacher), cast(Distance, self.distance)
        storage = get_event_storage()
        compared: Features = {}

        def teach() -> Features:
            features, for_distance = self._teach(capture, instances)
            compared.update(for_distance)
            return features

        with ExitStack() as stack:
            capture = stack.enter_context(capture_features(self._backbone))
            passes = TwoForwardPasses(
                self.student,
                capture,
                teach,
                joint_head=self.joint_head,
                cache_targets=self.cache_targets,
            )
            if teacher.uses_student_head:
                stack.enter_context(passes.first_pass())
            losses: dict[str, Tensor] = dict(self.student(batch))
        if teacher.uses_student_head or getattr(distance, "reads_boxes", True):
            check_sizes(capture.image_size, instances)
        if teacher.uses_student_head:
            with (
                storage.name_scope("instructive"),
                inject_features(self._backbone, passes.teacher_features),
                self._own_statistics(),
                passes.second_pass(),
            ):
                instructive = self.student(batch)
            if self._watch is not None and not shares.is_counting():
                self._watch.add(losses, instructive)
            losses |= {f"instructive/{name}": self.instructive_weight * x for name, x in instructive.items()}
        distils = self.distills_student(storage.iter)
        if distils or distance.trains_on_detached_features:
            features = capture.features if distils else {name: x.detach() for name, x in capture.features.items()}
            if not compared:
                teach()
            if self.channel_adapters is not None:
                features = self.channel_adapters.to_width(features)
            losses["loss_distill"] = self.distill_weight * distance(features, compared, instances, capture.image_size)
        else:
            losses["loss_distill"] = self._zero_loss(self.distance)
        if self.channel_adapters is not None:
            # Of a level that the head does not read one convolution has no other gradient.
            losses["loss_distill"] = losses["loss_distill"] + self._zero_loss(self.channel_adapters)
        return losses

    def _own_statistics(self) -> AbstractContextManager[None]:
        """Inside, the head's batch norms keep statistics of the teacher's features beside those of the student's."""
        return nullcontext() if self.second_statistics is None else self.second_statistics.used()

    def _teach(self, capture: FeatureCapture, instances: Sequence[Any]) -> tuple[Features, Features]:
        """The teacher's features as the student's head reads them, and as the distance compares them."""
        teacher, adapters = cast(Teacher, self.teacher), self.channel_adapters
        if adapters is None:
            features = teacher(capture, instances)
            return features, features
        compared = teacher(capture.replaced(adapters.to_width(capture.features)), instances)
        return adapters.to_levels(compared), compared

    def _zero_loss(self, part: nn.Module) -> Tensor:
        """Zero, with a zero gradient for each parameter of ``part``: DDP waits for all of them."""
        zero = torch.zeros((), device=self.device)
        for parameter in part.parameters():
            zero = zero + parameter.flatten()[:0].sum()
        return zero

    @contextmanager
    def teacher_inference(self, on_student: Callable[[Batch, Any], None] = lambda *_: None) -> Iterator[None]:
        """Inside the block, the student detects from the instructive features (teacher AP).

        Batches need their labels (``instances``), as in training. on_student: called with each batch and what the
        student detects from its own features, which are computed for the teacher in any case. Raises ValueError where
        the student's head is not trained on the teacher's features.
        """
        teacher = cast(Teacher, self.teacher)
        if not teacher.uses_student_head:
            raise ValueError(f"the student's head cannot detect from the features of a {type(teacher).__name__}")
        forward = self.student.forward

        def detect(batch: Batch) -> Any:
            batch = prepare_batch(self.student, batch_to_device(batch, self.device))
            with capture_features(self._backbone) as capture:
                found = forward(batch)
            on_student(batch, found)
            features, _ = self._teach(capture, [x["instances"] for x in batch])
            with inject_features(self._backbone, features), self._own_statistics():
                return forward(batch)

        with patched_method(self.student, "forward", detect):
            yield


def student_of(model: nn.Module) -> nn.Module:
    """The plain detector inside ``model`` (itself when there is no teacher)."""
    return model.student if isinstance(model, TrainingModel) else model


def trained_detectors(model: nn.Module) -> tuple[nn.Module, ...]:
    """The plain detectors that ``model`` trains, the student first."""
    return model.detectors if isinstance(model, TrainingModel) else (model,)


def batch_to_device(batch: Batch, device: torch.device) -> list[dict[str, Any]]:
    """A batch with its images and instances on ``device``, copied without the synchronisation of ``Instances.to``."""
    return [
        {
            name: x.to(device, non_blocking=True) if name == "image" else _instances_to(x, device)
            for name, x in y.items()
        }
        for y in batch
    ]


def prepare_batch(detector: nn.Module, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The batch as the detector will see it, where it resizes images and labels itself: once for all passes."""
    own = getattr(detector, "prepare_batch", None)
    return cast("list[dict[str, Any]]", own(batch)) if callable(own) else batch


def check_sizes(image_size: tuple[int, int], instances: Sequence[Any]) -> None:
    """Raise InputError where the backbone got smaller images than the boxes are in: they would be elsewhere there."""
    if any(have < x for item in instances for have, x in zip(image_size, item.image_size, strict=True)):
        largest = "x".join(str(max(x)) for x in zip(*(item.image_size for item in instances), strict=True))
        raise InputError(
            f"the detector's backbone got images of {image_size[0]}x{image_size[1]} pixels, and their boxes are in"
            f" images of {largest}: a detector that resizes them itself needs prepare_batch, and its backbone has to"
            " start at the image (docs/own-detector.md)"
        )


def is_batch(value: Any) -> bool:
    """Whether it is what detectron2's loaders yield; a user's own model may take something else."""
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
