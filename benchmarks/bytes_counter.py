"""Counts the bytes that torch's operators read and write."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class BytesCounter(TorchDispatchMode):
    """Inside its block, adds up the bytes that operators read and write, each by itself; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        outputs = {id(x): x for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        storages = {_storage(x) for x in inputs.values()}
        # An operator that neither allocates nor changes a tensor is a view.
        if func._schema.is_mutable or any(_storage(x) not in storages for x in outputs.values()):
            self.total += sum(x.numel() * x.element_size() for x in (*inputs.values(), *outputs.values()))
        return result


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr() if x.layout is torch.strided else id(x)
