"""The structure of the code: who imports whom, how long things are, and what stays light.

Imports by name at run time are not seen here: ``lgd/config/method.py`` loads the methods' settings classes from
``lgd/methods``, which lies above it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROOMS = (
    "lgd.errors", "lgd.files", "lgd.cache", "lgd.environment", "lgd.signals", "lgd.logs", "lgd.cli", "lgd.device_waits",
    "lgd.background",
    "lgd.storage", "lgd.config", "lgd.results", "lgd.distributed", "lgd.data", "lgd.kernels", "lgd.detectors",
    "lgd.methods", "lgd.evaluation", "lgd.training", "lgd.train", "lgd.inference",
    "analysis.stats", "analysis", "analysis.verdicts", "analysis.table_builders", "analysis.plots", "analysis.report",
    "analysis.evidence", "analysis.tables", "analysis.__main__", "benchmarks", "ablations",
)  # fmt: skip
"""From the bottom up: each imports only itself and those before it."""

LONGEST_FUNCTION, LONGEST_FILE = 60, 400
"""Lines."""

SOURCES = sorted(
    path
    for top in ("lgd", "analysis", "benchmarks", "ablations", "tools", "tests")
    for path in (ROOT / top).rglob("*.py")
)


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {_module(path): path for path in SOURCES if path.relative_to(ROOT).parts[0] not in ("tests", "tools")}


def _imports(path: Path) -> Iterator[str]:
    """The project's modules that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in MODULES:
                    yield full
                elif node.module in MODULES:
                    yield node.module


def _room(module: str) -> str:
    """The innermost one."""
    return max((room for room in ROOMS if module == room or module.startswith(f"{room}.")), key=len, default="")


def test_each_room_imports_only_those_below_it() -> None:
    assert [module for module in MODULES if module != "lgd" and not _room(module)] == []
    order = {room: i for i, room in enumerate(ROOMS)}
    upwards = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in _imports(path)
        if module != "lgd" and imported != "lgd" and order[_room(imported)] > order[_room(module)]
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {module: {x for x in _imports(path) if x != module} for module, path in MODULES.items()}
    # Those that nothing left imports are taken away until none is left; what remains is a circle.
    while loose := [module for module, imported in edges.items() if not imported & edges.keys()]:
        for module in loose:
            del edges[module]
    assert {module: sorted(imported & edges.keys()) for module, imported in edges.items()} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_fit_a_screen(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = [x for x in ast.walk(ast.parse(text)) if isinstance(x, (ast.FunctionDef, ast.AsyncFunctionDef))]
    too_long = {x.name: x.end_lineno - x.lineno + 1 for x in functions if x.end_lineno is not None}
    assert {name: lines for name, lines in too_long.items() if lines > LONGEST_FUNCTION} == {}


def test_reading_records_and_planning_load_neither_torch_nor_detectron2_nor_ray() -> None:
    light = [x for x in MODULES if _room(x) == "lgd.config"] + ["lgd.results.record", "lgd.results.sweep_spec"]
    code = (
        f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'detectron2', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
