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
    """Sums that stay on the device: reading them would be a wait for each image."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def _take(self, total: Tensor, count: Tensor) -> None:
        self._sums.append(torch.stack([total.double(), count.double()]))

    def totals(self) -> tuple[float, float]:
        """Sum and count; those of several processes add up."""
        total, count = torch.stack(self._sums).sum(dim=0).tolist() if self._sums else (0.0, 0.0)
        return total, count


class OwnAttention(_Mean):
    """By how much more than an equal share objects attend to their own label, over images and pyramid levels.

    0: each object sees the average of its image's labels; 1: its own alone; below 0: the others'. Every level counts
    alike. Objects alone in their image count only where they have the context object beside them; the context object
    itself and the stand-in of an image without objects never count.
    """

    def __init__(self, context: bool) -> None:
        super().__init__()
        self._context = context

    def add(self, own_LBN: Tensor, valid_BN: Tensor) -> None:
        """Take in one batch: the own weights (L, B, N) and the slots that are filled, bool (B, N)."""
        entries_B1 = valid_BN.sum(dim=1, keepdim=True)
        counted_BN = valid_BN & (entries_B1 > 1)
        if self._context:
            counted_BN[:, -1] = False
        excess = (own_LBN * entries_B1 - 1) / (entries_B1 - 1).clamp(min=1)
        self._take((excess * counted_BN).sum(), counted_BN.sum() * len(own_LBN))


class LabelUse(_Mean):
    """How far the instructive features inside the objects' boxes change when every class is exchanged for the next.

    The root of squared differences over squares, all levels and channels together: 0, the classes do not matter; 1,
    nothing in common is left; at most the root of 2. A low value says that the teacher does not hear its labels; a high
    one does not say that it makes sense of them: it is high before any training. ``totals`` gives what the root is
    taken of.
    """

    def add(self, true: Features, exchanged: Features, objects: Objects) -> None:
        """Take in one batch: the features (B, C, h, w) by level, of the true classes and of the exchanged ones."""
        labelled_BN1 = (objects.classes >= 0)[..., None]
        for name, features in true.items():
            a_BCP, b_BCP = features.float().flatten(2), exchanged[name].float().flatten(2)
            size = (int(features.shape[-2]), int(features.shape[-1]))
            inside_B1P = (objects.regions(size) & labelled_BN1).any(dim=1, keepdim=True)
            self._take(
                ((a_BCP - b_BCP).square() * inside_B1P).sum(),
                ((a_BCP.square() + b_BCP.square()) * inside_B1P).sum(),
            )


class Watched(NamedTuple):
    """What is measured of a teacher; None where there is nothing of the kind."""

    attention: OwnAttention | None = None
    labels: LabelUse | None = None


@contextmanager
def watching(teacher: Any) -> Iterator[Watched]:
    """Inside the block, what passes through ``teacher`` is taken in.

    No label use where no label is encoded, or where there is one class alone. No attention where objects do not ask for
    labels (no encoder, other variants), see themselves alone (adapter off), or leave no trace in the features (mapper
    off).
    """
    if not isinstance(teacher, ImplicitTeacher) or teacher.label_encoder is None:
        yield Watched()
        return
    adapter = teacher.relation_adapter
    asks = adapter.variant == "appearance_queries" and adapter.exchange and teacher.knowledge_mapper.write
    seen = Watched(OwnAttention(teacher.context) if asks else None, LabelUse() if teacher.num_classes > 1 else None)
    exchanging = False

    def attended(module: RelationAdapter, inputs: tuple[Any, Any, Tensor], _: Tensor) -> None:
        if seen.attention is not None and not exchanging:
            seen.attention.add(module.own_weights(*inputs), inputs[2])

    def instructed(module: ImplicitTeacher, inputs: tuple[FeatureCapture, Any], features: Features) -> None:
        nonlocal exchanging
        if seen.labels is None:
            return
        capture, instances = inputs
        objects = Objects.from_instances(instances, capture.image_size, context=module.context)
        following = torch.where(objects.classes >= 0, (objects.classes + 1) % module.num_classes, objects.classes)
        exchanging = True
        try:
            other = module.instruct(capture.features, replace(objects, classes=following))
        finally:
            exchanging = False
        seen.labels.add(features, other, objects)

    handles = [adapter.register_forward_hook(attended), teacher.register_forward_hook(instructed)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
