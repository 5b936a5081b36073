"""Compiles kernels for a GPU, which needs none: the interpreter takes what the compiler may refuse.

Run as a script with launches as :func:`described` makes them, as JSON, on standard input; without TRITON_INTERPRET.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
"""An H100."""

TYPES = {torch.float32: "*fp32", torch.int64: "*i64", torch.bool: "*i1"}

SIZES = ("P", "H", "W")
"""Arguments with capital names that are no constants."""


def described(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
    """The kernel that a launch asks for, as JSON: its module and name, the types of what it is given, its constants."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    signature, constants = {}, {}
    for name, value in {**dict(zip(names, arguments, strict=False)), **named}.items():
        if name not in names:
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        elif (name.isupper() and name not in SIZES) or value == 1:
            # A constant, or a number that the compiler takes for one.
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
    return json.dumps([function.__module__, function.__name__, signature, constants], sort_keys=True)


def main() -> None:
    for launch in json.load(sys.stdin):
        module, name, signature, constants = json.loads(launch)
        source = ASTSource(getattr(importlib.import_module(module), name), signature, constants)
        assert triton.compile(source, target=TARGET).asm["cubin"]
        print(name)


if __name__ == "__main__":
    main()
