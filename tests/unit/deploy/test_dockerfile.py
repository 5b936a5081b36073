"""The Dockerfile: what it copies is there and enough to install the project from.

Where Docker is not, or no daemon of its, the nightly test runs the Dockerfile's commands in a directory of its own.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    # Nor credentials.
    assert set(IGNORED) == {*LEFT_OUT, *(f"**/{x}" for x in CACHES), "**/.env*", "**/*.env"}


def test_the_set_up_finds_its_inputs(environment_layer: Path) -> None:
    """The same file decides in the image and in a checkout whether an environment is up to date."""
    commands = [x for name, x in INSTRUCTIONS if name == "RUN" and "setup_env" in x]
    assert commands == ["PIP_NO_CACHE_DIR=1 python tools/setup_env.py --storage"]
    script = environment_layer / "tools" / "setup_env.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "--storage" in done.stdout
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


def test_the_packages_of_object_storage_are_pinned() -> None:
    pinned = {x.partition("==")[0] for x in (ROOT / "constraints.txt").read_text().splitlines()[1:]}
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["storage"]
    assert {"adlfs", "gcsfs", "s3fs"} == set(extra) <= pinned


def test_the_project_builds_from_what_is_copied(environment_layer: Path, tmp_path: Path) -> None:
    """The build of the editable install, as pip asks for it; its wheel puts /lgd on the path."""
    code = "import hatchling.build, sys; print(hatchling.build.build_editable(sys.argv[1]))"
    out = tmp_path / "wheel"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=environment_layer, capture_output=True, text=True, check=True
    )
    assert (out / done.stdout.split()[-1]).exists()


IMPORTS = ["python", "-c", "import lgd, torch, detectron2, ray, s3fs, gcsfs, adlfs; print(lgd.__file__)"]

INSTALLED = ["python", "-m", "pip", "freeze", "--exclude-editable"]

NOT_PINNED = ("cuda-", "detectron2 @", "nvidia-", "triton==")
"""What torch pins itself, and what the repository makes."""

Run = Callable[[list[str]], str]
"""Runs a command in what was built, and returns what it printed."""


@pytest.mark.nightly
def test_what_is_built_has_the_environment(environment_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """2 to 3 minutes, 7 GB of disk, and the package registries."""
    (command,) = (json.loads(x) for name, x in INSTRUCTIONS if name == "CMD")
    with _image() if _has_docker() else _directory(environment_layer, tmp_path_factory.mktemp("bin")) as run:
        assert "lgd sweep" in run(command)
        assert run(IMPORTS).strip().endswith("/lgd/__init__.py")
        # Nothing is what was newest on the day.
        pinned = (ROOT / "constraints.txt").read_text().splitlines()
        assert [x for x in run(INSTALLED).splitlines() if x not in pinned and not x.startswith(NOT_PINNED)] == []


def _has_docker() -> bool:
    """Docker, and a daemon that answers it."""
    return bool(shutil.which("docker")) and not subprocess.run(["docker", "info"], capture_output=True).returncode


@contextmanager
def _image() -> Iterator[Run]:
    tag = f"lgd-suite-test:{uuid.uuid4().hex[:12]}"
    subprocess.run(["docker", "build", "--tag", tag, str(ROOT)], check=True)
    try:
        yield lambda command: _output(["docker", "run", "--rm", tag, *command])
    finally:
        subprocess.run(["docker", "image", "rm", "--force", tag], check=True)


@contextmanager
def _directory(layer: Path, bin: Path) -> Iterator[Run]:
    """What the Dockerfile does, in a directory in the place of the image's; without what changes the system."""
    # The image's Python: of the version that this environment was made with, and without what is installed in it.
    (bin / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys._base_executable)} "$@"\n')  # type: ignore[attr-defined]
    (bin / "python").chmod(0o755)
    path = os.environ["PATH"]
    try:
        for name, x in INSTRUCTIONS:
            if name == "RUN" and "apt-get" not in x and "/etc/" not in x:
                subprocess.run(["sh", "-c", x], cwd=layer, env={**os.environ, "PATH": f"{bin}:{path}"}, check=True)
        shutil.copytree(ROOT, layer, ignore=_ignored, dirs_exist_ok=True)
        made = {name: x for name, x in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        made["PATH"] = f"{layer}/.venv/bin:{path}"
        yield lambda command: _output([shutil.which(command[0], path=made["PATH"]) or "", *command[1:]], layer, made)
    finally:
        shutil.rmtree(layer, ignore_errors=True)


def _ignored(directory: str, names: list[str]) -> set[str]:
    """Of the names in a directory of the repository, those that .dockerignore leaves out."""

    def left_out(name: str) -> bool:
        path = (Path(directory) / name).relative_to(ROOT).as_posix()
        return path in IGNORED or f"**/{name}" in IGNORED

    return set(filter(left_out, names))


def _output(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    return subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
