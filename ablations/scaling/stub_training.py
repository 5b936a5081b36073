"""A training that trains nothing, in the place of the real one inside a trial: what is left is what the suite adds.

The benchmark alone asks for it, by a ``sitecustomize`` that it puts on the PYTHONPATH of the commands it starts; no
setting does. All around it is real: the command, its checks and its lock, Ray Tune, the worker processes, the cost
meter and its heartbeat, the checkpoints, the reports, the record, the display, the tables.
"""

from __future__ import annotations

import inspect
import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ablations.import_patches import patch_on_import

SITECUSTOMIZE = "from ablations.scaling import stub_training\n\nstub_training.install()\n"

CONTROL = "LGD_STUB_CONTROL"
"""Environment variable: a directory in which every step is noted. Without it steps take no time and nobody notes."""

STEP_S = "LGD_STUB_STEP_S"
"""Environment variable: seconds of a step, with CONTROL."""

EVENTS, HOLD = "events.jsonl", "hold"
"""In that directory: an Event a line; while the file HOLD is there no step begins."""

FINGERPRINT = "stub"


class Trained(NamedTuple):
    """What the stub hands on to what makes the record."""

    experiment: Any
    meter: Any
    """The attempt's CostMeter."""
    losses: list[tuple[int, float]]
    """(step, loss)."""


class Event(NamedTuple):
    """What a trial did."""

    trial: str
    """The path or URL of its directory."""
    node: str
    pid: int
    step: int
    """0 for the attempt's begin."""
    time: float
    """Seconds since 1970."""


def install() -> None:
    """In this process, :func:`lgd.training.run.run` makes records without training."""
    patch_on_import({"lgd.training.run": _patch, "lgd.training.worker": _without_gpus})


def _patch(module: Any) -> None:
    signature = inspect.signature(module._attempt)

    def attempt(*arguments: Any) -> tuple[Trained, None]:
        given = signature.bind(*arguments).arguments
        return _attempt(*(given[x] for x in ("experiment", "directory", "on_progress", "should_stop"))), None

    module._attempt, module._fields = attempt, _fields


def _without_gpus(module: Any) -> None:
    """A GPU that Ray gives to a trial may be one that the cluster was only told of."""
    of_worker = module.experiment_for_worker

    def experiment_for_worker(experiment: Any, cpus: int, gpus: float, gpu: int = 0) -> Any:
        return of_worker(experiment, cpus, 0.0)

    module.experiment_for_worker = experiment_for_worker


def _attempt(
    experiment: Any, directory: Path, on_progress: Callable[[Any], None], should_stop: Callable[[], bool]
) -> Trained:
    """Report every step, under the meter and its heartbeat; go on from the last checkpoint."""
    from lgd.results.cost_meter import CostMeter, Heartbeat
    from lgd.training import checkpoint
    from lgd.training.progress import Stopped

    meter, steps = CostMeter(), experiment.schedule.steps
    every = experiment.checkpoint.resolved_every(steps)
    with meter.phase("setup"), Heartbeat(meter, directory, experiment.model_dump_json()) as heartbeat:
        spent, losses = heartbeat.previous_cost(FINGERPRINT), list[tuple[int, float]]()
        start, state = checkpoint.latest(directory, experiment, FINGERPRINT) or (0, None)
        if state is not None:
            losses = [(int(step), float(loss)) for step, loss in state["losses"]]
            meter.restore(state["meter"])
            spent = spent.since_checkpoint(state["meter"])
        if spent.attempts:
            meter.add_lost_work(spent)
        heartbeat.begin_training(FINGERPRINT)
        with meter.phase("training"):
            _note(directory, 0)
            for step in range(start + 1, steps + 1):
                _work()
                _note(directory, step)
                losses.append((step, 1 / step))
                on_progress({"step": step, "steps": steps, "loss": 1 / step, "eta": 0.0, "spent": meter.total()})
                stop = should_stop()
                if stop or (every and step % every == 0 and step < steps):
                    kept = {"losses": [list(x) for x in losses], "meter": meter.state()}
                    checkpoint.save(directory, step, experiment, FINGERPRINT, "", kept)
                if stop:
                    raise Stopped(step)
    return Trained(experiment, meter, losses)


def _work() -> None:
    """Take as long as a step takes."""
    if CONTROL in os.environ:
        time.sleep(float(os.environ.get(STEP_S, "0")))
        while Path(os.environ[CONTROL], HOLD).exists():
            time.sleep(0.05)


def _note(directory: Path, step: int) -> None:
    if CONTROL not in os.environ:
        return
    import ray

    from lgd.storage.outputs import shown

    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    event = Event(shown(directory), node, os.getpid(), step, time.time())
    # One write, which no other process's comes between.
    with Path(os.environ[CONTROL], EVENTS).open("ab", buffering=0) as file:
        file.write(json.dumps(event).encode() + b"\n")


def events(control: Path) -> list[Event]:
    """What was noted so far, in its order."""
    path = control / EVENTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Event(*json.loads(line)) for line in lines]


def _fields(trained: Trained, _: None) -> dict[str, Any]:
    """Fields of the Record. The scores follow from the experiment, and mean nothing."""
    from lgd.results import provenance

    experiment, spent = trained.experiment, trained.meter.state()
    ap = 20 + zlib.crc32(experiment.model_dump_json().encode()) % 1000 / 100
    return {
        "status": "finished",
        "steps": experiment.schedule.steps,
        "experiment": experiment,
        "fingerprint": FINGERPRINT,
        "student": {"AP": ap, "AP50": 1.5 * ap, "AP75": ap, "APs": None, "APm": None, "APl": None},
        "losses": {"loss": trained.losses},
        "seconds": spent["seconds"],
        "device_seconds": spent["device_seconds"],
        "attempts": spent["attempts"],
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
    }
