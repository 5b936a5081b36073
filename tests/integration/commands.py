"""The sweep's command, called in this process with what it prints kept, and settings that make its trainings tiny."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from ablations.run import main

QUICK = [
    "--preset", "nano",
    "--set", "schedule.steps=6", "--set", "schedule.warmup_steps=2", "--set", "schedule.batch=2",
    "--set", "data.shapes_train=12", "--set", "data.shapes_val=6", "--set", "data.shapes_side=64",
    "--set", "data.min_sizes=[64]", "--set", "data.max_size=64", "--set", "data.test_size=64",
    "--set", "detector.backbone.width=8", "--set", "detector.channels=16", "--set", "detector.head_convs=1",
]  # fmt: skip

OVERRIDES = QUICK[3::2]


class Called(NamedTuple):
    status: int
    out: str
    err: str


def call(*arguments: str) -> Called:
    """``python ablations/run.py`` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return Called(status, out.getvalue(), err.getvalue())


def run(*arguments: str, status: int = 0) -> Called:
    """The same, with the status that it must end with."""
    done = call(*arguments)
    assert done.status == status, done.out + done.err
    return done
