"""A trial as plain values, as it travels to its worker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from lgd.config.grids import Trial
from lgd.distributed.resources import Resources
from lgd.storage.outputs import STOP_FILE as STOP_FILE
from lgd.storage.outputs import lease_number, shown

ERROR_FILE = "error.txt"
"""In a trial's directory: the traceback of what it failed with."""

TEACHERS = "teachers"
"""In the results directory: the trainings of frozen teachers."""


@dataclass(frozen=True)
class RecordLabels:
    """Fields that the records of a sweep share."""

    grid: str
    preset: str
    overrides: tuple[str, ...] = ()

    def of(self, arm: str) -> dict[str, Any]:
        return {"grid": self.grid, "preset": self.preset, "arm": arm, "overrides": list(self.overrides)}


class TrialConfig(TypedDict):
    """What a trial's worker gets.

    ``directory``, ``teachers`` and ``stop`` are URLs where the sweep's results directory is one: a worker may see
    another disk.
    """

    name: str
    """As Ray Tune knows the trial."""
    labels: dict[str, Any]
    """Of its record."""
    experiment: dict[str, Any]
    directory: str
    teachers: str
    stop: str
    """The path of the stop file."""
    lease: int
    """Number of the lease that the sweep holds on its results directory; 0 for one that is no URL."""
    cpus: int
    gpus: float
    workers: int


def trial_config(trial: Trial, labels: RecordLabels, output: Path, resources: Resources) -> TrialConfig:
    """The trial of a sweep whose results directory is ``output``."""
    return {
        "name": trial.name,
        "labels": labels.of(trial.arm),
        "experiment": trial.experiment.model_dump(mode="json"),
        "directory": shown(trial.directory),
        "teachers": shown(output / TEACHERS),
        "stop": shown(output / STOP_FILE),
        "lease": lease_number(output),
        "cpus": resources.cpus,
        "gpus": resources.gpus,
        "workers": resources.workers,
    }
