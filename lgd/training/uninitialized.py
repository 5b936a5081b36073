"""Building a model without the values of its parameters, for what needs their names and shapes only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

_FILL = {
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
    *(getattr(init, name) for name in dir(init) if name.endswith("_") and not name.startswith("_")),
}


def _leave(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


class Uninitialized(TorchFunctionMode):
    """Inside, parameters keep whatever is in their memory, and ``zeros_like`` does not write zeros.

    That is most of the time that building a model and its optimiser takes. What else is computed stays: settings that
    a module keeps as buffers, such as anchors. Not on the meta device, on which those would have no values.
    """

    def __enter__(self) -> Self:
        # torch draws again until no value is out of bounds: of what is in the memory one may be for good. The function
        # is none that a mode sees.
        self._drawn, init._no_grad_trunc_normal_ = init._no_grad_trunc_normal_, _leave
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        init._no_grad_trunc_normal_ = self._drawn
        super().__exit__(*raised)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILL:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty_like if func is torch.zeros_like else func)(*args, **kwargs)
