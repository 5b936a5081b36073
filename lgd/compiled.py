"""Having torch compile the parts of a model whose work does not depend on what is in the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from lgd.distiller import Distiller
from lgd.export import student_of
from lgd.passes import head_of


def compile_parts(model: nn.Module) -> list[nn.Module]:
    """Compile what :func:`parts` lists, in place; the first steps of every image size take long.

    Past torch's limit of recompilations (8 sizes of images) a new size runs as it would without.

    Parameters keep their names. A part's own ``forward`` is put in its place, so that hooks, recording and replaying
    (lgd/taps.py) stay outside of what is compiled. Needs a C compiler, on a GPU for Triton's launchers.
    """
    found = list(parts(model))
    for part in found:
        target = cast(Any, part)
        # Each size by itself: for maps of any size, one cell among them, torch's compiler fails.
        target.forward = torch.compile(part.forward, dynamic=False)
    return found


def parts(model: nn.Module) -> Iterator[nn.Module]:
    """Backbone, head, the teacher's encoder, adapter and mapper, and the distance: what is there of them."""
    student = student_of(model)
    yield cast(nn.Module, student.backbone)
    head = head_of(student)
    if head is not None:
        yield head
    if isinstance(model, Distiller):
        for name in ("appearance_encoder", "knowledge_mapper", "relation_adapter"):
            part = getattr(model.teacher, name, None)
            if part is not None:
                yield part
        if not any(True for _ in model.distance.named_buffers()):
            yield model.distance
