"""Changes to modules at the moment they are imported, in every process of a command.

For drills and benchmarks alone: they start the command with a ``sitecustomize`` on its PYTHONPATH that asks for the
changes. Imports nothing of the suite and nothing large, since every Python process of the command runs it.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

Patch = Callable[[Any], None]
"""Changes a module that has just run."""


def patch_on_import(patches: Mapping[str, Patch]) -> None:
    """Each module of ``patches``, by its full name, is changed as soon as it is imported in this process."""
    sys.meta_path.insert(0, _Finder(patches))


class _Finder:
    """Finds the modules of ``patches``, and patches each once it has run."""

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        patch = self._patches.get(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if patch else None
        if spec is None or spec.loader is None or patch is None:
            return None
        run = spec.loader.exec_module

        def run_and_patch(module: ModuleType) -> None:
            run(module)
            patch(module)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec
