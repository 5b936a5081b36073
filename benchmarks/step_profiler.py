"""Profiles training steps by part and direction, in milliseconds or FLOPs (see breakdown.py).

A step is divided into consecutive ranges: a range ends where the next begins, so the ranges of a step add up to it.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

import torch
import torchvision  # noqa: F401  registers the operators of deformable convolutions
from detectron2.engine import HookBase
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_parts import REST
from lgd.methods.distiller import Distiller, student_of
from lgd.methods.feature_capture import patched_method

LABEL_ASSIGNMENT = (
    *("label_anchors", "quality", "match"),
    *("label_and_sample_anchors", "label_and_sample_proposals", "assign_anchors", "assign_regions"),
)
"""Methods of detectors, and of R-CNN's two stages, that assign labels."""

UNORDERED = 2**63
"""Sequence number from which on autograd's nodes have no order: those that accumulate a parameter's gradient."""

Range = tuple[str, str]
"""Part and direction."""


class StepProfiler(HookBase):
    """A trainer's hook that divides its steps into ranges.

    read: reads a clock or counter; a reading may be a placeholder (a CUDA event). resolve: turns a step's readings into
    numbers after the step. steps: of each step, the sum of its ranges by part and direction.
    """

    def __init__(
        self, model: nn.Module, read: Callable[[], Any], resolve: Callable[[Sequence[Any]], Sequence[float]]
    ) -> None:
        self.steps: list[dict[Range, float]] = []
        self._model, self._read, self._resolve = model, read, resolve
        # Ranges of the step and the reading at which each starts; None: not part of the step.
        self._ranges: list[Range | None] = []
        self._readings: list[Any] = []
        # Ranges entered and not yet left, innermost last.
        self._stack: list[Range] = []
        # Autograd's sequence number from which on nodes are created by which part, rising.
        self._sequence_numbers: list[int] = []
        self._created_by: list[str] = []
        self._passes = 0
        self._hooks = ExitStack()

    def before_train(self) -> None:
        model, student = self._model, student_of(self._model)
        remove_later = self._hooks.callback
        for module, part in _modules(model):
            remove_later(module.register_forward_pre_hook(lambda *_, part=part: self._enter(part)).remove)
            remove_later(module.register_forward_hook(lambda *_: self._leave()).remove)
        remove_later(student.register_forward_pre_hook(lambda *_: self._enter_student(), prepend=True).remove)
        remove_later(student.register_forward_hook(lambda *_: self._leave()).remove)
        remove_later(model.register_forward_pre_hook(lambda *_: self._start_forward(), prepend=True).remove)
        remove_later(model.register_forward_hook(lambda _, __, losses: self._start_backward(losses)).remove)
        for owner in (student, getattr(student, "proposal_generator", None), getattr(student, "roi_heads", None)):
            for name in LABEL_ASSIGNMENT:
                if hasattr(owner, name):
                    self._hooks.enter_context(self._profiled(owner, name, "label assignment"))
        self._hooks.enter_context(self._profiled(student, "preprocess_image", REST))
        self._hooks.enter_context(self._profiled(self.trainer, "_write_metrics", REST))

    def after_train(self) -> None:
        self._hooks.close()

    def before_step(self) -> None:
        self._ranges, self._readings = [], []
        self._stack = [(REST, "update")]
        self._start(self._stack[-1])

    def after_backward(self) -> None:
        self._stack = [("optimiser", "update")]
        self._start(self._stack[-1])

    def after_step(self) -> None:
        self._readings.append(self._read())
        values = self._resolve(self._readings)
        found: dict[Range, float] = {}
        for each, (start, end) in zip(self._ranges, itertools.pairwise(values), strict=True):
            if each is not None:
                found[each] = found.get(each, 0.0) + end - start
        self.steps.append(found)

    def _start(self, new: Range | None) -> None:
        """End the current range and start another."""
        if not self._ranges or self._ranges[-1] != new:
            self._ranges.append(new)
            self._readings.append(self._read())

    def _enter(self, part: str) -> None:
        self._stack.append((part, "forward" if self._stack[-1][1] != "update" else "update"))
        self._start_innermost()

    def _leave(self) -> None:
        self._stack.pop()
        self._start_innermost()

    def _start_innermost(self) -> None:
        self._start(self._stack[-1])
        self._sequence_numbers.append(_next_sequence_number())
        self._created_by.append(self._stack[-1][0])

    def _start_forward(self) -> None:
        self._passes = 0
        self._sequence_numbers, self._created_by = [], []
        self._stack = [(REST, "forward")]
        self._start_innermost()

    def _enter_student(self) -> None:
        self._passes += 1
        self._enter("head" if self._passes == 1 else "second head pass")

    def _start_backward(self, losses: Mapping[str, torch.Tensor]) -> None:
        # Walking the graph is not part of the step.
        self._start(None)
        for node in _nodes(losses.values()):
            number = node._sequence_nr()
            if number < UNORDERED:
                place = bisect.bisect_right(self._sequence_numbers, number) - 1
                of_node = (self._created_by[place] if place >= 0 else REST, "backward")
                node.register_prehook(lambda _, of_node=of_node: self._start(of_node))
        self._stack = [(REST, "backward")]
        self._start(self._stack[-1])

    def _profiled(self, owner: Any, name: str, part: str) -> AbstractContextManager[None]:
        """Inside the block, calls of ``owner.name`` belong to ``part``."""
        method = getattr(owner, name)

        def profiled(*arguments: Any, **named: Any) -> Any:
            self._enter(part)
            try:
                return method(*arguments, **named)
            finally:
                self._leave()

        return patched_method(owner, name, profiled)


def _next_sequence_number() -> int:
    """Sequence number of the node that autograd creates next."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


def _modules(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules with a part of their own, and its name."""
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
    """Every node of the tensors' autograd graph, once."""
    queue = [x.grad_fn for x in tensors if x.grad_fn is not None]
    seen = set(queue)
    while queue:
        node = queue.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)


def time_profiler(model: nn.Module, device: torch.device) -> StepProfiler:
    """A profiler of milliseconds; on a GPU by CUDA events."""
    if device.type != "cuda":
        return StepProfiler(model, lambda: time.perf_counter() * 1e3, lambda readings: readings)

    def read() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def resolve(events: Sequence[torch.cuda.Event]) -> list[float]:
        torch.cuda.synchronize(device)
        return [events[0].elapsed_time(x) for x in events]

    return StepProfiler(model, read, resolve)


def flop_profiler(model: nn.Module, counter: FlopCounterMode) -> StepProfiler:
    """A profiler of the GFLOPs that ``counter`` counts."""
    return StepProfiler(model, lambda: counter.get_total_flops() / 1e9, lambda readings: readings)


def separate_head_passes(model: nn.Module) -> None:
    """Have the head run once for each pass: while both are one batch, they cannot be told apart."""
    if isinstance(model, Distiller):
        model.joint_head = False


def flop_counter() -> FlopCounterMode:
    """torch's FLOP counter, with deformable convolutions added."""
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
    # Twice the forward pass: once for the gradient of the input, once for that of the weights.
    return 2 * _deformable(x, weight, out_shape=grad)
