"""Compile with torch.compile the parts of a model whose work does not depend on the content of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn

from lgd.methods.distiller import Distiller, trained_detectors
from lgd.methods.frozen_teacher import FrozenTeacher
from lgd.methods.shared_head import head_of

SHAPES = 128
"""Input shapes that a part is compiled for. The teacher's parts see every level of every image size with every number
of object slots (see Objects); shapes beyond this number run uncompiled."""


def compile_parts(model: nn.Module) -> list[nn.Module]:
    """Compile the modules of :func:`parts` in place, for training steps; the first step of every shape takes long.

    Parameters keep their names. Only a part's ``forward`` is replaced, so hooks and feature injection
    (lgd/methods/feature_capture.py) stay outside the compiled code. Needs a C compiler, also on a GPU, where Triton
    compiles its launchers.
    """
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    found = list(parts(model))
    for part in found:
        target = cast(Any, part)
        target.forward = _in_training(part, part.forward)
    return found


def _in_training(part: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, compiled in training steps and in a frozen teacher; not in evaluation, which has too many shapes."""
    # dynamic=False: torch's compiler fails on feature maps of dynamic size, for their size may be a single cell.
    compiled = torch.compile(forward, dynamic=False)
    frozen = not any(p.requires_grad for p in part.parameters())

    def chosen(*arguments: Any, **named: Any) -> Any:
        stepping = frozen or (part.training and torch.is_grad_enabled())
        return (compiled if stepping else forward)(*arguments, **named)

    return chosen


def parts(model: nn.Module) -> Iterator[nn.Module]:
    """Backbone and head of each detector that is trained, and what of the teacher depends on no image's content.

    The latter are an implicit teacher's encoder, adapter and mapper, a label encoder's network, or a frozen backbone;
    and the distance of a teacher that is trained together with the student.
    """
    for detector in trained_detectors(model):
        yield cast(nn.Module, detector.backbone)
        head = head_of(detector)
        if head is not None:
            yield head
    teacher = getattr(model, "teacher", None)
    if isinstance(teacher, FrozenTeacher):
        yield teacher.backbone
        return
    for name in ("appearance_encoder", "knowledge_mapper", "relation_adapter", "encoder"):
        part = getattr(teacher, name, None)
        if part is not None:
            yield part
    if isinstance(model, Distiller):
        yield model.distance
