"""Whether the teacher tells the objects of an image apart: what each one's attention goes to while it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lgd.adapter import RelationAdapter
from lgd.teacher import ImplicitTeacher


class OwnAttention:
    """By how much more than an equal share objects attend to their own label, over images and pyramid levels.

    0: each object sees the average of its image's labels; 1: its own alone; below 0: the others'. Every level counts
    alike. Objects alone in their image count only where they have the context object beside them; the context object
    itself and the stand-in of an image without objects never count.
    """

    def __init__(self, context: bool) -> None:
        self._context = context
        self._sums: list[Tensor] = []

    def add(self, own_LBN: Tensor, valid_BN: Tensor) -> None:
        """Take in one batch: the own weights (L, B, N) and the slots that are filled, bool (B, N)."""
        entries_B1 = valid_BN.sum(dim=1, keepdim=True)
        counted_BN = valid_BN & (entries_B1 > 1)
        if self._context:
            counted_BN[:, -1] = False
        excess = (own_LBN * entries_B1 - 1) / (entries_B1 - 1).clamp(min=1)
        # Sums stay on the device: reading them would be a wait for each image.
        self._sums.append(torch.stack([(excess * counted_BN).sum().double(), counted_BN.sum().double() * len(own_LBN)]))

    def totals(self) -> tuple[float, float]:
        """Sum and count; those of several processes add up."""
        total, count = torch.stack(self._sums).sum(dim=0).tolist() if self._sums else (0.0, 0.0)
        return total, count


@contextmanager
def watching(teacher: Any) -> Iterator[OwnAttention | None]:
    """Inside the block, what passes through ``teacher`` is taken in.

    None where there is nothing of the kind: where objects do not ask for labels (no encoder, other variants), see
    themselves alone (adapter off), or leave no trace in the features (mapper off).
    """
    if not isinstance(teacher, ImplicitTeacher) or not (
        teacher.label_encoder is not None
        and teacher.relation_adapter.variant == "appearance_queries"
        and teacher.relation_adapter.exchange
        and teacher.knowledge_mapper.write
    ):
        yield None
        return
    seen = OwnAttention(teacher.context)

    def take_in(module: RelationAdapter, inputs: tuple[Any, Any, Tensor], _: Tensor) -> None:
        seen.add(module.own_weights(*inputs), inputs[2])

    handle = teacher.relation_adapter.register_forward_hook(take_in)
    try:
        yield seen
    finally:
        handle.remove()
