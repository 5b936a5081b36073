"""Counts the operators that a step launches, and those at which a GPU would make the host wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import boxes

from lgd import device_waits

WAITING_OPERATORS = {
    "aten::_local_scalar_dense": "reading a number",
    "aten::nonzero": "places of the true",
    "aten::masked_select": "boolean index",
    "aten::_unique2": "unique values",
    "aten::unique_dim": "unique values",
    "aten::bincount": "bincount",
    "aten::equal": "reading a number",
    "aten::is_nonzero": "reading a number",
    "torchvision::nms": "NMS",
}
"""Operators whose result, or its size, the host has to know, and what the wait is called."""

HOST_READS = {"tolist": "reading a tensor", "cpu": "reading a tensor"}
"""Methods of a tensor that copy it to the host."""


class WaitCounter(TorchDispatchMode):
    """Inside its block, counts launches and waits of what runs, on any device.

    On the CPU nothing waits; inside :func:`as_on_gpu` what is counted is what a GPU would wait for. Views launch
    nothing. An operator counts as one launch, though a few are several kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.waits: Counter[str] = Counter()
        self._host_reads = _HostReads(self.waits)

    def __enter__(self) -> WaitCounter:
        self._host_reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._host_reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        wait = _wait_of(func, args, kwargs or {})
        if wait and not self._host_reads.is_filling:
            self.waits[wait] += 1
        if not getattr(func, "is_view", False):
            self.launches += 1
        return result


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Inside the block, code that takes another way on a GPU takes that way on the CPU, too."""
    with (
        mock.patch.object(device_waits, "reading_waits", return_value=True),
        # torchvision's NMS of several levels at once, for as many boxes as a GPU takes.
        mock.patch.object(boxes, "_batched_nms_vanilla", boxes._batched_nms_coordinate_trick),
    ):
        yield


class _HostReads(TorchFunctionMode):
    """Counts copies of whole tensors to the host, which below this level look like any other copy, or like nothing."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self._waits = waits
        self.is_filling = False
        """Inside ``new_full``, which makes a tensor of its number and reads it back, on the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "new_full":
            self.is_filling = True
            try:
                return func(*args, **(kwargs or {}))
            finally:
                self.is_filling = False
        if name in HOST_READS and getattr(torch.Tensor, name, None) is func:
            self._waits[HOST_READS[name]] += 1
        return func(*args, **(kwargs or {}))


def _wait_of(func: Any, args: Any, kwargs: dict[str, Any]) -> str:
    """What a GPU would wait for in a call of the operator; empty for nothing."""
    name = func._schema.name
    if name in WAITING_OPERATORS:
        return WAITING_OPERATORS[name]
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, torch.Tensor)]
        return "boolean index" if any(x.dtype in (torch.bool, torch.uint8) for x in indices) else ""
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave"
    return ""
