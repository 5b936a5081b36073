"""The commands, called in this process or for one of their own, and settings that make their trainings tiny."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from ablations.run import main
from lgd.config.experiment import settings
from tests.helpers import quick_experiment, wait_until
from tests.unit.distributed.test_ranks import ALIKE

ROOT = Path(__file__).parents[2]

QUICK = [
    "--preset", "nano",
    "--set", "schedule.steps=6", "--set", "schedule.warmup_steps=2", "--set", "schedule.batch=2",
    "--set", "data.shapes_train=12", "--set", "data.shapes_val=6", "--set", "data.shapes_side=64",
    "--set", "data.min_sizes=[64]", "--set", "data.max_size=64", "--set", "data.test_size=64",
    "--set", "detector.backbone.width=8", "--set", "detector.channels=16", "--set", "detector.head_convs=1",
]  # fmt: skip

OVERRIDES = QUICK[3::2]

ONE_BY_ONE = ["--cpus", "2", "--set", "threads=1"]
"""Options of a sweep in ``ray_session``: a trial holds both of its cores, so one process trains all of them; each would
take seconds to import torch."""


class Called(NamedTuple):
    status: int
    out: str
    err: str


@contextlib.contextmanager
def training_under(cluster: Any, *arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """``lgd train`` on a fake cluster, in a process of its own: this one may be connected to one for other tests.

    Its output can be read. Both end with the block.
    """
    process = subprocess.Popen(
        training_command(*arguments, "--address", cluster.address), cwd=ROOT, env={**os.environ, **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        # Ray ends a training's processes once its driver has gone; one that is still ending when its node is shut down
        # may be left (Ray 2.60).
        try:
            wait_until(lambda: not _of_ray_train(), seconds=60)
        finally:
            cluster.shutdown()


def _of_ray_train() -> list[psutil.Process]:
    """Ray Train's controllers and workers on the fake clusters of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(name in " ".join(process.cmdline()) for name in ("ray::TrainController", "ray::RayTrainWorker")):
                found.append(process)
    return found


@contextlib.contextmanager
def without_figures() -> Iterator[None]:
    """Inside, reports have their table and CSV alone: drawing takes seconds, longer than many of the sweeps here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.report.write.draw", lambda *_: [])
        patch.setattr("analysis.report.write.arms_figure", lambda *_: [])
        patch.setattr("analysis.report.write.write_page", lambda directory, *_: directory / "report.html")
        yield


def call(*arguments: str, figures: bool = False) -> Called:
    """``python ablations/run.py`` with these arguments. figures: draw those of its report."""
    out, err = io.StringIO(), io.StringIO()
    drawn: contextlib.AbstractContextManager[None] = contextlib.nullcontext() if figures else without_figures()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), drawn:
        status = main(arguments)
    return Called(status, out.getvalue(), err.getvalue())


def run(*arguments: str, status: int = 0, figures: bool = False) -> Called:
    """The same, with the status that it must end with."""
    done = call(*arguments, figures=figures)
    assert done.status == status, done.out + done.err
    return done


def training_command(*arguments: str) -> list[str]:
    """``python -m lgd.train`` with these arguments, for a process of its own."""
    return [sys.executable, "-m", "lgd.train", *arguments]


def training_settings(method: str, **changes: Any) -> list[str]:
    """A quick experiment with a method as --set options for one of the paper's."""
    quick = settings(quick_experiment(**{**ALIKE, "method.name": method, **changes}))
    skipped = ("method.name", "seed")
    return [
        x
        for key, value in quick.items()
        if key not in skipped
        for x in ("--set", f"{key}={'auto' if value is None else json.dumps(value)}")
    ]


def size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0
