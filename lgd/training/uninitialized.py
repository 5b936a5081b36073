"""Building a model without the values of its parameters, for what needs their names and shapes only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

_FILL = {
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
    *(getattr(init, name) for name in dir(init) if name.endswith("_") and not name.startswith("_")),
}


class Uninitialized(TorchFunctionMode):
    """Inside, parameters keep whatever is in their memory, and ``zeros_like`` does not write zeros.

    That is most of the time that building a model and its optimiser takes. What else is computed stays: settings that
    a module keeps as buffers, such as anchors. Not on the meta device, on which those would have no values.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILL:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty_like if func is torch.zeros_like else func)(*args, **kwargs)
