"""The Dockerfile: what it copies is there and enough to install the project from. Docker is not needed."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ablations.working_tree import CACHES, LEFT_OUT

ROOT = Path(__file__).parents[3]

INSTRUCTIONS = [
    x.split(maxsplit=1)
    for x in re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
    if x.strip() and not x.startswith("#")
]
"""The instructions, each with its arguments in one line."""

IGNORED = (ROOT / ".dockerignore").read_text().split()


def copies() -> list[tuple[list[str], str]]:
    """The sources and target of each COPY, in order."""
    found = [shlex.split(x) for name, x in INSTRUCTIONS if name == "COPY"]
    return [(sources, target) for *sources, target in found]


@pytest.fixture
def environment_layer(tmp_path: Path) -> Path:
    """What is there when the environment is made: what is copied before the whole repository."""
    *before, last = copies()
    assert last == (["."], ".")
    for sources, target in before:
        (tmp_path / target).mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(ROOT / source, tmp_path / target)
    return tmp_path


def test_nothing_that_is_copied_is_ignored() -> None:
    for sources, _ in copies()[:-1]:
        assert not [x for x in sources if any(fnmatch.fnmatch(x, pattern) for pattern in IGNORED)]


def test_the_image_has_no_results_environments_or_caches() -> None:
    assert set(IGNORED) == {*LEFT_OUT, *(f"**/{x}" for x in CACHES)}


def test_the_set_up_finds_its_inputs(environment_layer: Path) -> None:
    """The same file decides in the image and in a checkout whether an environment is up to date."""
    commands = [x for name, x in INSTRUCTIONS if name == "RUN" and "setup_env" in x]
    assert commands == ["PIP_NO_CACHE_DIR=1 python tools/setup_env.py"]
    script = environment_layer / "tools" / "setup_env.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "--dev" in done.stdout
    spec = importlib.util.spec_from_file_location("copied_setup_env", script)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert environment_layer == module.ROOT
    # It reads all that decides what is installed: raises where a file is missing.
    assert module.Layout(environment_layer).inputs_hash() == module.Layout(ROOT).inputs_hash()
    assert module.python_problem(sys.version_info, "python") == ""


def test_the_python_of_the_image_is_the_pinned_one() -> None:
    (image,) = (x for name, x in INSTRUCTIONS if name == "FROM")
    assert re.match(r"python:3\.11-", image)
    assert "Python 3.11" in (ROOT / "constraints.txt").read_text().splitlines()[0]


def test_the_project_builds_from_what_is_copied(environment_layer: Path, tmp_path: Path) -> None:
    """The build of the editable install, as pip asks for it; its wheel puts /lgd on the path."""
    code = "import hatchling.build, sys; print(hatchling.build.build_editable(sys.argv[1]))"
    out = tmp_path / "wheel"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=environment_layer, capture_output=True, text=True, check=True
    )
    assert (out / done.stdout.split()[-1]).exists()
