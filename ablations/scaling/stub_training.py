"""A training that trains nothing, in the place of the real one inside a trial: what is left is what the suite adds.

The benchmark alone asks for it, by a ``sitecustomize`` that it puts on the PYTHONPATH of the commands it starts; no
setting does. All around it is real: the command, its checks and its lock, Ray Tune, the worker processes, the cost
meter and its heartbeat, the reports, the record, the display, the tables.
"""

from __future__ import annotations

import inspect
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from ablations.import_patches import patch_on_import

SITECUSTOMIZE = "from ablations.scaling import stub_training\n\nstub_training.install()\n"


class Trained(NamedTuple):
    """What the stub hands on to what makes the record. meter: the attempt's CostMeter."""

    experiment: Any
    meter: Any


def install() -> None:
    """In this process, :func:`lgd.training.run.run` makes records without training."""
    patch_on_import({"lgd.training.run": _patch})


def _patch(module: Any) -> None:
    signature = inspect.signature(module._attempt)

    def attempt(*arguments: Any) -> tuple[Trained, None]:
        given = signature.bind(*arguments).arguments
        return _attempt(given["experiment"], given["directory"], given["on_progress"]), None

    module._attempt, module._fields = attempt, _fields


def _attempt(experiment: Any, directory: Path, on_progress: Any) -> Trained:
    """Report every step, under the meter and its heartbeat."""
    from lgd.results.cost_meter import CostMeter, Heartbeat

    directory.mkdir(parents=True, exist_ok=True)
    meter, steps = CostMeter(), experiment.schedule.steps
    with meter.phase("setup"), Heartbeat(meter, directory, "stub"), meter.phase("training"):
        for step in range(1, steps + 1):
            on_progress({"step": step, "steps": steps, "loss": 1 / step, "eta": 0.0, "spent": meter.total()})
    return Trained(experiment, meter)


def _fields(trained: Trained, _: None) -> dict[str, Any]:
    """Fields of the Record. The scores follow from the experiment, and mean nothing."""
    from lgd.results import provenance

    experiment, spent = trained.experiment, trained.meter.state()
    ap = 20 + zlib.crc32(experiment.model_dump_json().encode()) % 1000 / 100
    return {
        "status": "finished",
        "steps": experiment.schedule.steps,
        "experiment": experiment,
        "fingerprint": "stub",
        "student": {"AP": ap, "AP50": 1.5 * ap, "AP75": ap, "APs": None, "APm": None, "APl": None},
        "losses": {"loss": [(step, 1 / step) for step in range(1, experiment.schedule.steps + 1)]},
        "seconds": spent["seconds"],
        "device_seconds": spent["device_seconds"],
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
    }
