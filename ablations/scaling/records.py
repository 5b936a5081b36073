"""Thousands of records, varied from those of a real sweep."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ablations.scaling.processes import ROOT, Row, directory_size, read_commands
from lgd.errors import InputError
from lgd.results.record import FILE
from lgd.results.sweep_spec import SWEEP_FILE, SweepSpec

COMMITTED = ROOT / "benchmarks" / "results"

SPREAD = 0.05
"""Standard deviation of what a seed changes, relative."""


def real_sweep(given: Path | None) -> Path:
    """``given``, or the newest committed sweep of the components grid. Raises InputError where there is none."""
    if given is None:
        found = sorted(
            COMMITTED.glob(f"components_*/{SWEEP_FILE}"), key=lambda path: path.parent.name.rsplit("_", 1)[-1]
        )
        if not found:
            raise InputError(f"{COMMITTED}: no sweep to vary the records of: name one with --sweep")
        return found[-1].parent
    if not (given / SWEEP_FILE).exists() or not list(given.glob(f"trials/*/{FILE}")):
        raise InputError(f"--sweep {given}: not a sweep's results directory with records")
    return given


def measure_records(sizes: Sequence[int], sweep: Path, directory: Path) -> Iterator[Row]:
    """What the commands that read records take, at each of ``sizes``, rising. sweep: whose records are varied."""
    spec = SweepSpec.read(sweep)
    first = {arm: _first_of(sweep, arm) for arm in spec.arms}
    arms, there = [arm for arm in first if first[arm]], 0
    for size in sizes:
        for i in range(there, size):
            # Seed by seed, as a sweep is run.
            _write(first[arms[i % len(arms)]], i // len(arms), directory / "trials")
        there = size
        varied = {"arms": tuple(arms), "seeds": -(-size // len(arms)), "looks": (), "code": None, "ended": None}
        spec.model_copy(update=varied).write(directory)
        yield Row("records", size, "records", "MB", directory_size(directory / "trials").megabytes)
        yield from read_commands("records", size, directory, spec.grid)


def _first_of(sweep: Path, arm: str) -> dict[str, Any]:
    """The arm's finished record of its lowest seed; empty without one. ``directory``: its trial's, without the seed."""
    found = []
    for path in sorted(sweep.glob(f"trials/*/{FILE}")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["arm"] == arm and record["status"] == "finished":
            found.append({"record": record, "directory": path.parent.name.rpartition("-seed")[0]})
    return min(found, key=lambda x: x["record"]["experiment"]["seed"], default={})


def _write(first: dict[str, Any], seed: int, trials: Path) -> None:
    """A record like ``first`` of another seed: other scores and costs, within SPREAD."""
    record, rng = first["record"], random.Random(f"{first['directory']} {seed}")

    def varied(values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value * max(0.0, rng.gauss(1, SPREAD)) if isinstance(value, float) else value
            for key, value in values.items()
        }

    made = {
        **record,
        "experiment": {**record["experiment"], "seed": record["experiment"]["seed"] + seed},
        "student": varied(record["student"]),
        "seconds": varied(record["seconds"]),
        "device_seconds": varied(record["device_seconds"]),
    }
    directory = trials / f"{first['directory']}-seed{made['experiment']['seed']}"
    directory.mkdir(parents=True)
    (directory / FILE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
