"""Whether the teacher uses the labels: how far its features follow them, at which of its modules their signal is lost
(docs/method.md, "Label signal"), and where each object's attention goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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


class LabelSignal(_Mean):
    """How much the vectors that one of the teacher's modules returns change when every class is replaced by the next.

    As :class:`LabelUse`, over the vectors of the objects that have a class.
    """

    def add(self, vectors: Tensor, replaced: Tensor, objects: Objects) -> None:
        """Add one batch: vectors (B, N, C), or (L, B, N, C), of the true and of the replaced classes."""
        # Padding slots may hold anything.
        counted_BN1 = (objects.classes >= 0)[..., None]
        a, b = (x.float().masked_fill(~counted_BN1, 0) for x in (vectors, replaced))
        self._add_sums((a - b).square().sum(), (a.square() + b.square()).sum())


EMBEDDING, PROJECTION, VALUES, ATTENDED = "label embedding", "projection", "values", "attended"
"""Stages before the instructive features, whose change is :class:`LabelUse`: the outputs of the label encoder, of its
projection, of the attention's value projection, and of the relation adapter."""

INSTRUCTIVE = "instructive features"
"""The last stage."""


class TeacherMeters(NamedTuple):
    """The measurements of a teacher; None, or no stage, where one does not apply."""

    attention: OwnAttention | None = None
    labels: LabelUse | None = None
    signal: Mapping[str, LabelSignal] = MappingProxyType({})
    """By stage, in the order in which the labels pass them."""

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sum and count of each: ``attention``, ``label_use`` and the stages. Those of several processes add up."""
        meters = {"attention": self.attention, "label_use": self.labels, **self.signal}
        return {name: meter.totals() for name, meter in meters.items() if meter is not None}


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
    attention = OwnAttention(teacher.context) if attends else None

    def after_adapter(module: RelationAdapter, inputs: tuple[Any, Any, Tensor], _: Tensor) -> None:
        if attention is not None and not (second_pass and second_pass.is_running):
            attention.add(module.own_weights(*inputs), inputs[2])

    with ExitStack() as stack:
        stack.callback(adapter.register_forward_hook(after_adapter).remove)
        second_pass = stack.enter_context(_SecondPass(teacher)) if teacher.num_classes > 1 else None
        yield TeacherMeters(attention, *((second_pass.labels, second_pass.signal) if second_pass else ()))


class _SecondPass:
    """Inside the context, every forward pass of ``teacher`` is repeated with each class replaced by the next."""

    def __init__(self, teacher: ImplicitTeacher) -> None:
        self._teacher = teacher
        adapter = teacher.relation_adapter
        # ``label_queries`` has no values of labels, and ``label_only`` no attention.
        stages = {
            EMBEDDING: True,
            PROJECTION: True,
            VALUES: adapter.variant == "appearance_queries",
            ATTENDED: adapter.attends,
        }
        self.labels = LabelUse()
        self.signal = {name: LabelSignal() for name, there in stages.items() if there}
        self.is_running = False
        self._outputs: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _SecondPass:
        teacher = self._teacher
        assert teacher.label_encoder is not None
        assert teacher.label_projection is not None
        self._handles = [
            teacher.label_encoder.register_forward_hook(self._keep(EMBEDDING)),
            teacher.label_projection.register_forward_hook(self._keep(PROJECTION)),
            teacher.relation_adapter.register_forward_hook(self._keep(ATTENDED)),
            teacher.register_forward_hook(self._repeat),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        """A hook that keeps a module's output, and for the relation adapter the values of its attention too."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._outputs[name] = output
            if isinstance(module, RelationAdapter) and VALUES in self.signal:
                self._outputs[VALUES] = module.values(inputs[1], inputs[2])

        return hook

    def _repeat(self, teacher: ImplicitTeacher, inputs: tuple[FeatureCapture, Any], features: Features) -> None:
        capture, instances = inputs
        objects = Objects.from_instances(instances, capture.image_size, context=teacher.context)
        following = torch.where(objects.classes >= 0, (objects.classes + 1) % teacher.num_classes, objects.classes)
        true = dict(self._outputs)
        self.is_running = True
        try:
            replaced = teacher.instruct(capture.features, replace(objects, classes=following))
        finally:
            self.is_running = False
        self.labels.add(features, replaced, objects)
        for name, meter in self.signal.items():
            meter.add(true[name], self._outputs[name], objects)
        self._outputs.clear()
