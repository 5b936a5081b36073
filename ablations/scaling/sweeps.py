"""Sweeps of many trials under Ray Tune, whose trainings train nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from ablations.scaling.processes import ROOT, CommandFailedError, Row, directory_size, read_commands, run_measured
from ablations.scaling.stub_training import SITECUSTOMIZE
from lgd.results.record import FILE

ARMS = ("baseline", "LGD")

SETTINGS = (
    *("schedule.warmup_steps=1", "data.shapes_train=8", "data.shapes_val=4"),
    *("detector.backbone.width=8", "detector.channels=16", "detector.head_convs=1"),
)
"""Besides the steps, of which there are few. Nobody looks at the images, and no student is written; but the command
checks that the disk has room for all of them."""


class _Watch:
    """The largest number of file handles of the sweep's own process."""

    def __init__(self) -> None:
        self.handles = 0

    def __call__(self, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            self.handles = max(self.handles, process.num_fds())


def measure_sweep(trials: int, steps: int, cores: int, directory: Path) -> Iterator[Row]:
    """One sweep of so many trials, an even number, of ``steps`` each, ``cores`` side by side, in ``directory``."""
    output, watch = directory / "out", _Watch()
    # Short, since the path of a socket may have no more than 107 characters.
    place = Path(tempfile.mkdtemp(prefix="lgd-load-"))
    try:
        (place / "site").mkdir()
        (place / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
        path = os.pathsep.join(filter(None, [str(place / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        sets = [x for setting in (f"schedule.steps={steps}", *SETTINGS) for x in ("--set", setting)]
        taken = run_measured(
            [
                "ablations/run.py", "--grid", "components", "--preset", "nano", "--arms", ",".join(ARMS),
                "--seeds", str(trials // len(ARMS)), "--cpus", str(max(1, _cores() // cores)), "--yes", *sets,
                "--output", str(output),
            ],
            {
                "PYTHONPATH": path, "RAY_TMPDIR": str(place), "RAY_worker_niceness": "0", "RAY_ADDRESS": "",
            },
            watch,
        )  # fmt: skip
        temporary = directory_size(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    ended = sorted(path.stat().st_mtime for path in output.glob(f"trials/*/{FILE}"))
    if len(ended) != trials:
        raise CommandFailedError(f"{len(ended)} of {trials} trials have a record")
    results = directory_size(output)

    def row(quantity: str, unit: str, value: float) -> Row:
        return Row("sweep", trials, quantity, unit, value)

    yield from (
        row("sweep's memory", "MiB", taken.memory),
        row("sweep's file handles", "", watch.handles),
        row("sweep's CPU", "s", taken.cpu),
        row("from the first record to the last", "s", ended[-1] - ended[0]),
        row("a trial", "s", (ended[-1] - ended[0]) / (trials - 1)),
        row("Ray's temporary directory", "MB", temporary.megabytes),
        row("files in Ray's temporary directory", "", temporary.files),
        row("results directory", "MB", results.megabytes),
        row("files in the results directory", "", results.files),
    )
    yield from read_commands("sweep", trials, output, "components")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
