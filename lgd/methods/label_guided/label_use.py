"""Whether the teacher uses the labels: how far its features follow them, and where each object's attention goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lgd.methods.feature_capture import FeatureCapture, Features
from lgd.methods.label_guided.adapter import RelationAdapter
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.methods.objects import Objects


class _Mean:
    """A sum and its count, kept on the device: reading them would synchronise with it for each image."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def _add_sums(self, total: Tensor, count: Tensor) -> None:
        self._sums.append(torch.stack([total.double(), count.double()]))

    def totals(self) -> tuple[float, float]:
        """Sum and count; those of several processes add up."""
        total, count = torch.stack(self._sums).sum(dim=0).tolist() if self._sums else (0.0, 0.0)
        return total, count


class OwnAttention(_Mean):
    """By how much more than an equal share objects attend to their own label, over images and pyramid levels.

    0: each object attends to all of its image's labels alike; 1: to its own only; below 0: to the others'. The levels
    have equal weights. Objects alone in their image count only if there is a context object; the context object itself
    and the placeholder of an image without objects do not count.
    """

    def __init__(self, context: bool) -> None:
        super().__init__()
        self._context = context

    def add(self, own_LBN: Tensor, valid_BN: Tensor) -> None:
        """Add one batch: the weights of the own entries (L, B, N) and which slots hold an object, bool (B, N)."""
        entries_B1 = valid_BN.sum(dim=1, keepdim=True)
        counted_BN = valid_BN & (entries_B1 > 1)
        if self._context:
            counted_BN[:, -1] = False
        excess = (own_LBN * entries_B1 - 1) / (entries_B1 - 1).clamp(min=1)
        self._add_sums((excess * counted_BN).sum(), counted_BN.sum() * len(own_LBN))


class LabelUse(_Mean):
    """How much the instructive features inside the objects' boxes change when every class is replaced by the next.

    sqrt(sum of squared differences / sum of squares), over all levels and channels: 0, the classes have no effect; 1,
    the two are uncorrelated; at most sqrt(2). A low value says that the teacher does not use its labels. A high one
    does not say that it uses them well: it is high before any training. ``totals`` gives the fraction without the
    root.
    """

    def add(self, features: Features, replaced: Features, objects: Objects) -> None:
        """Add one batch: the features (B, C, h, w) by level, of the true and of the replaced classes."""
        labelled_BN1 = (objects.classes >= 0)[..., None]
        for name, level in features.items():
            a_BCP, b_BCP = level.float().flatten(2), replaced[name].float().flatten(2)
            size = (int(level.shape[-2]), int(level.shape[-1]))
            inside_B1P = (objects.regions(size) & labelled_BN1).any(dim=1, keepdim=True)
            self._add_sums(
                ((a_BCP - b_BCP).square() * inside_B1P).sum(),
                ((a_BCP.square() + b_BCP.square()) * inside_B1P).sum(),
            )


class TeacherMeters(NamedTuple):
    """The measurements of a teacher; None where one does not apply."""

    attention: OwnAttention | None = None
    labels: LabelUse | None = None


@contextmanager
def measure_label_use(teacher: Any) -> Iterator[TeacherMeters]:
    """Inside the block, every forward pass of ``teacher`` is measured.

    No label use without a label encoder, or with one class only. No attention where appearance does not attend to
    labels (no encoder, other variants), where objects attend to themselves only (adapter off), or where attention has
    no effect on the features (mapper off).
    """
    if not isinstance(teacher, ImplicitTeacher) or teacher.label_encoder is None:
        yield TeacherMeters()
        return
    adapter = teacher.relation_adapter
    attends = adapter.variant == "appearance_queries" and adapter.exchange and teacher.knowledge_mapper.write
    meters = TeacherMeters(
        OwnAttention(teacher.context) if attends else None, LabelUse() if teacher.num_classes > 1 else None
    )
    second_pass = False

    def after_adapter(module: RelationAdapter, inputs: tuple[Any, Any, Tensor], _: Tensor) -> None:
        if meters.attention is not None and not second_pass:
            meters.attention.add(module.own_weights(*inputs), inputs[2])

    def after_teacher(module: ImplicitTeacher, inputs: tuple[FeatureCapture, Any], features: Features) -> None:
        nonlocal second_pass
        if meters.labels is None:
            return
        capture, instances = inputs
        objects = Objects.from_instances(instances, capture.image_size, context=module.context)
        next_classes = torch.where(objects.classes >= 0, (objects.classes + 1) % module.num_classes, objects.classes)
        second_pass = True
        try:
            replaced = module.instruct(capture.features, replace(objects, classes=next_classes))
        finally:
            second_pass = False
        meters.labels.add(features, replaced, objects)

    handles = [adapter.register_forward_hook(after_adapter), teacher.register_forward_hook(after_teacher)]
    try:
        yield meters
    finally:
        for handle in handles:
            handle.remove()
