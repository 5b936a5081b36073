"""Having torch compile the parts of a model whose work does not depend on what is in the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

from lgd.methods.distiller import Distiller, student_of
from lgd.methods.fgfi import FrozenTeacher
from lgd.methods.shared_head import head_of

SHAPES = 128
"""Shapes that a part is compiled for. The teacher's see each level of each size of images, and each number of object
slots (see Objects); past that many, a new one runs as it would without."""


def compile_parts(model: nn.Module) -> list[nn.Module]:
    """Compile what :func:`parts` lists, in place, for training steps; the first steps of every shape take long.

    Parameters keep their names. A part's own ``forward`` is put in its place, so that hooks, recording and replaying
    (lgd/methods/feature_capture.py) stay outside of what is compiled. Needs a C compiler, on a GPU for Triton's launchers.
    """
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    found = list(parts(model))
    for part in found:
        target = cast(Any, part)
        target.forward = _in_training(part, part.forward)
    return found


def _in_training(part: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, compiled where a step needs its gradient, or a frozen teacher's; evaluation's shapes are legion."""
    # Each shape by itself: for maps of any size, one cell among them, torch's compiler fails.
    compiled = torch.compile(forward, dynamic=False)
    frozen = not any(p.requires_grad for p in part.parameters())

    def chosen(*arguments: Any, **named: Any) -> Any:
        stepping = frozen or (part.training and torch.is_grad_enabled())
        return (compiled if stepping else forward)(*arguments, **named)

    return chosen


def parts(model: nn.Module) -> Iterator[nn.Module]:
    """Backbone, head, the teacher's encoder, adapter and mapper or its frozen backbone, and LGD's distance."""
    student = student_of(model)
    yield cast(nn.Module, student.backbone)
    head = head_of(student)
    if head is not None:
        yield head
    if not isinstance(model, Distiller):
        return
    if isinstance(model.teacher, FrozenTeacher):
        yield model.teacher.backbone
        return
    for name in ("appearance_encoder", "knowledge_mapper", "relation_adapter"):
        part = getattr(model.teacher, name, None)
        if part is not None:
            yield part
    yield model.distance
