"""Frozen networks that are part of no training: not of its optimiser, its workers' gradients or its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class Unregistered(nn.Module):
    """Holds a network without registering it as a submodule. It is frozen and stays in evaluation mode.

    ``to()``, ``cuda()``, ``float()`` and the like move it all the same.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # torch looks for submodules among attributes, not inside tuples.
        self._unregistered = (network.eval().requires_grad_(False),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What to(), cuda(), float() and the like call.
        if recurse:
            self._unregistered[0]._apply(fn)
        super()._apply(fn, recurse)
        return self
