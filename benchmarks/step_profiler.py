"""A training step cut into its parts, by the clock or by FLOPs (see breakdown.py)."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torchvision  # noqa: F401  registers the operators of deformable convolutions
from detectron2.engine import HookBase
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lgd.methods.distiller import Distiller, student_of

REST = "rest"
PARTS = (
    "backbone", "head", "label assignment", "encoder", "adapter", "mapper", "second head pass", "teacher's backbone",
    "distance", "optimiser", REST,
)  # fmt: skip
"""In the order in which they are shown.

head: of the detector, from its features to its losses, but for the label assignment of both passes; R-CNN's includes
its proposals. second head pass: the same on the instructive features. distance: its adapter, and FGFI's masks. rest:
loading, the images' way to the device, the objects' regions, sums of losses, what is logged.
"""

DIRECTIONS = ("forward", "backward", "update")
"""update: what belongs to neither pass."""

LABELLERS = ("label_anchors", "label_and_sample_anchors", "label_and_sample_proposals", "quality", "match")
"""Methods of detectors, and of R-CNN's two stages, that assign labels."""

ENDLESS = 2**63
"""Autograd's number of nodes that were made in no particular order: those that add to a parameter's gradient."""

Cut = tuple[str, str]
"""Part and direction."""


class Cuts(HookBase):
    """A trainer's hook that cuts its steps into parts.

    read: the clock, or whatever else grows; what it returns may stand for a number that is known later (``settle``).
    """

    def __init__(
        self, model: nn.Module, read: Callable[[], Any], settle: Callable[[Sequence[Any]], Sequence[float]]
    ) -> None:
        self.steps: list[dict[Cut, float]] = []
        self._model, self._read, self._settle = model, read, settle
        self._cuts: list[Cut | None] = []
        self._readings: list[Any] = []
        self._open: list[Cut] = []
        self._numbers: list[int] = []
        self._made_in: list[str] = []
        self._passes = 0
        self._stack = ExitStack()

    def before_train(self) -> None:
        model, student = self._model, student_of(self._model)
        undo = self._stack.callback
        for module, part in _modules(model):
            undo(module.register_forward_pre_hook(lambda *_, part=part: self._enter(part)).remove)
            undo(module.register_forward_hook(lambda *_: self._leave()).remove)
        undo(student.register_forward_pre_hook(lambda *_: self._enter_student(), prepend=True).remove)
        undo(student.register_forward_hook(lambda *_: self._leave()).remove)
        undo(model.register_forward_pre_hook(lambda *_: self._begin_forward(), prepend=True).remove)
        undo(model.register_forward_hook(lambda _, __, losses: self._end_forward(losses)).remove)
        for owner in (student, getattr(student, "proposal_generator", None), getattr(student, "roi_heads", None)):
            for name in LABELLERS:
                if hasattr(owner, name):
                    self._stack.enter_context(self._during(owner, name, "label assignment"))
        self._stack.enter_context(self._during(student, "preprocess_image", REST))
        self._stack.enter_context(self._during(self.trainer, "_write_metrics", REST))

    def after_train(self) -> None:
        self._stack.close()

    def before_step(self) -> None:
        self._cuts, self._readings = [], []
        self._open = [(REST, "update")]
        self._cut(self._open[-1])

    def after_backward(self) -> None:
        self._open = [("optimiser", "update")]
        self._cut(self._open[-1])

    def after_step(self) -> None:
        self._readings.append(self._read())
        values = self._settle(self._readings)
        found: dict[Cut, float] = {}
        for cut, (start, end) in zip(self._cuts, itertools.pairwise(values), strict=True):
            if cut is not None:
                found[cut] = found.get(cut, 0.0) + end - start
        self.steps.append(found)

    def _cut(self, cut: Cut | None) -> None:
        if not self._cuts or self._cuts[-1] != cut:
            self._cuts.append(cut)
            self._readings.append(self._read())

    def _enter(self, part: str) -> None:
        self._open.append((part, "forward" if self._open[-1][1] != "update" else "update"))
        self._go_on()

    def _leave(self) -> None:
        self._open.pop()
        self._go_on()

    def _go_on(self) -> None:
        """From here on, it is the innermost part's."""
        self._cut(self._open[-1])
        self._numbers.append(_next_number())
        self._made_in.append(self._open[-1][0])

    def _begin_forward(self) -> None:
        self._passes = 0
        self._numbers, self._made_in = [], []
        self._open = [(REST, "forward")]
        self._go_on()

    def _enter_student(self) -> None:
        self._passes += 1
        self._enter("head" if self._passes == 1 else "second head pass")

    def _end_forward(self, losses: Mapping[str, torch.Tensor]) -> None:
        # Finding the nodes is no part of a step.
        self._cut(None)
        for node in _nodes(losses.values()):
            number = node._sequence_nr()
            if number < ENDLESS:
                place = bisect.bisect_right(self._numbers, number) - 1
                cut = (self._made_in[place] if place >= 0 else REST, "backward")
                node.register_prehook(lambda _, cut=cut: self._cut(cut))
        self._open = [(REST, "backward")]
        self._cut(self._open[-1])

    @contextmanager
    def _during(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Inside the block, calls of a method are of ``part``."""
        method, own = getattr(owner, name), vars(owner).get(name)

        def called(*arguments: Any, **named: Any) -> Any:
            self._enter(part)
            try:
                return method(*arguments, **named)
            finally:
                self._leave()

        setattr(owner, name, called)
        try:
            yield
        finally:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _next_number() -> int:
    """Of the node that autograd makes next."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


def _modules(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules that are a part of their own each."""
    yield cast(nn.Module, student_of(model).backbone), "backbone"
    if not isinstance(model, Distiller):
        return
    yield model.distance, "distance"
    if not model.teacher.uses_student_head:
        yield model.teacher, "teacher's backbone"
    for name, part in (
        ("label_encoder", "encoder"),
        ("label_projection", "encoder"),
        ("appearance_encoder", "encoder"),
        ("relation_adapter", "adapter"),
        ("knowledge_mapper", "mapper"),
    ):
        module = getattr(model.teacher, name, None)
        if module is not None:
            yield module, part


def _nodes(tensors: Iterable[torch.Tensor]) -> Iterator[Any]:
    """Every node of the tensors' graph, once."""
    waiting = [x.grad_fn for x in tensors if x.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)


def timed(model: nn.Module, device: torch.device) -> Cuts:
    """Cuts that read the clock, in milliseconds; the device's on a GPU."""
    if device.type != "cuda":
        return Cuts(model, lambda: time.perf_counter() * 1e3, lambda readings: readings)

    def read() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def settle(events: Sequence[torch.cuda.Event]) -> list[float]:
        torch.cuda.synchronize(device)
        return [events[0].elapsed_time(x) for x in events]

    return Cuts(model, read, settle)


def counted(model: nn.Module, counter: FlopCounterMode) -> Cuts:
    """Cuts that read how many FLOPs ``counter`` has seen, in units of 10^9."""
    return Cuts(model, lambda: counter.get_total_flops() / 1e9, lambda readings: readings)


def flop_counter() -> FlopCounterMode:
    """torch's, which also knows deformable convolutions."""
    operators = torch.ops.torchvision
    return FlopCounterMode(
        display=False,
        custom_mapping={operators.deform_conv2d: _deformable, operators._deform_conv2d_backward: _deformable_backward},
    )


def _deformable(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    batch, channels, height, width = out_shape
    per_group, rows, columns = weight[1:]
    return int(2 * batch * channels * height * width * per_group * rows * columns)


def _deformable_backward(grad: Any, x: Any, weight: Any, *_: Any, **__: Any) -> int:
    # As much again for the gradient of the input as for that of the weights.
    return 2 * _deformable(x, weight, out_shape=grad)
