"""The fingerprint of a training: a hash of what was built for it.

Two experiments that build the same model, optimiser and data have the same fingerprint, whatever their names and
settings say. So a setting that has no effect shows: its arm has the fingerprint of another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lgd.results.record import FINGERPRINT_VERSION

_DEPTH = 3
_SKIPPED = {"training"}

__all__ = ["FINGERPRINT_VERSION", "fingerprint"]


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer, **rest: object) -> str:
    """16 hex digits, a hash of the modules (classes, shapes, public attributes), the optimiser's groups and ``rest``.

    ``rest`` is what lies outside the model (data, schedule, seed, precision), as plain values. Fingerprints of
    different FINGERPRINT_VERSION cannot be compared.
    """
    described = {
        "modules": [[name, _type(module), _public(module)] for name, module in model.named_modules()],
        # Non-persistent buffers hold settings, such as anchors and pixel statistics; persistent ones are learnt.
        "buffers": [
            [f"{name}.{buffer}", _digest(value)]
            for name, module in model.named_modules()
            for buffer in sorted(module._non_persistent_buffers_set)
            if (value := module._buffers[buffer]) is not None
        ],
        "parameters": [[n, list(p.shape), str(p.dtype), p.requires_grad] for n, p in model.named_parameters()],
        "optimizer": [
            _type(optimizer),
            [
                {k: _value(v, 0) for k, v in group.items() if k != "params"} | {"parameters": len(group["params"])}
                for group in optimizer.param_groups
            ],
        ],
        "rest": {name: _value(value, 0) for name, value in rest.items()},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().double().contiguous().numpy().tobytes()).hexdigest()[:16]


def _type(value: object) -> str:
    """A class's top-level package and name, such as ``lgd.Distiller``: moving it to another module changes nothing."""
    package = type(value).__module__.partition(".")[0]
    return f"{package}.{type(value).__qualname__}"


def _public(value: object, depth: int = 0) -> dict[str, Any]:
    """The public attributes of ``value`` that are plain data."""
    found = {}
    for name, attribute in vars(value).items():
        if name.startswith("_") or name in _SKIPPED:
            continue
        plain = _value(attribute, depth + 1)
        if plain is not None:
            found[name] = plain
    return found


def _value(value: object, depth: int) -> Any:
    """``value`` as plain JSON data; None for what has no settings to read or is nested deeper than _DEPTH."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (nn.Module, torch.Tensor)) or depth > _DEPTH:
        return None
    if isinstance(value, dict):
        return {str(k): _value(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items: Iterable[object] = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_value(x, depth + 1) for x in items]
    if dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        return None if callable(value) else [_type(value), _public(value, depth)]
    return None
