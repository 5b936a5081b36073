"""Run a sweep's trials under Ray Tune. The one file that knows Ray."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from ablations.grids import Trial
from lgd import train
from lgd.errors import InputError
from lgd.experiment import Experiment, parse, settings
from lgd.record import FILE, Record, load

# Read by Ray when it is imported, so set before it is. What it says is printed by display.py instead.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
# Paths in a trial's settings mean in its worker what they mean here.
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"

import ray  # noqa: E402
from ray import tune  # noqa: E402


@dataclass(frozen=True)
class Resources:
    """What one trial holds, and how many run side by side."""

    cpus: int
    gpus: float
    side_by_side: int


class Display(Protocol):
    """Who is told how the sweep goes. Trials are named by :attr:`Trial.name`."""

    def progress(self, name: str, progress: dict[str, Any]) -> None: ...

    def ended(self, name: str, record: Record) -> None: ...


def resources_for(trials: Sequence[Trial], cpus: int | None, gpus: float | None) -> Resources:
    """One core a trial on the CPU: small networks gain more from running side by side than from more threads.

    With GPUs, one each, and the cores shared out. Raises InputError for what this machine can never give.
    """
    cores = _cores()
    devices = torch.cuda.device_count()
    on_gpu = devices > 0 and any(t.experiment.device != "cpu" for t in trials)
    share = gpus if gpus is not None else float(on_gpu)
    if cpus is not None and cpus < 1:
        raise InputError(f"--cpus {cpus}: a trial needs at least one")
    if share < 0 or (share > 1 and share != int(share)):
        raise InputError(f"--gpus {share:g}: give a fraction of one GPU, or a whole number")
    if share > devices:
        raise InputError(f"a trial asks for {share:g} GPUs, this machine has {devices}")
    at_once = max(1, int(devices / share)) if share else 0
    wanted = cpus if cpus is not None else max(1, cores // at_once) if at_once else 1
    if wanted > cores:
        raise InputError(f"a trial asks for {wanted} CPUs, this machine has {cores}")
    fitting = min(x for x in (cores // wanted, at_once or cores, len(trials) or 1))
    return Resources(wanted, share, max(1, fitting))


def run_trial(config: dict[str, Any]) -> None:
    """What a Ray worker runs: train one trial, leave its record in its directory whatever happens."""
    trial = config["trial"]
    experiment = parse(trial["experiment"])
    names = {"grid": trial["grid"], "preset": trial["preset"], "arm": trial["arm"]}
    directory = Path(trial["directory"])
    if not experiment.threads:
        experiment = experiment.model_copy(update={"threads": trial["cpus"]})
    if not trial["gpus"] and experiment.device == "auto":
        # A worker without a share of a GPU must not use one that others were given.
        experiment = experiment.model_copy(update={"device": "cpu"})
    started = train.now()
    try:
        record = train.run(experiment, directory, **names, tell=lambda progress: tune.report(dict(progress)))
    except Exception as error:
        record = train.failure(experiment, f"{type(error).__name__}: {error}", started=started, **names)
        tune.report({"record": record.model_dump_json()})
        with contextlib.suppress(OSError):
            record.save(directory)
            (directory / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        # Raised on, so that Tune ends this worker: an error may have left its GPU unusable.
        raise
    # The driver may not see this worker's disk: the record travels with the last report as well.
    tune.report({"record": record.model_dump_json()})


def run_sweep(
    trials: Sequence[Trial], grid: str, preset: str, output: Path, resources: Resources, display: Display
) -> None:
    """Train every trial; each leaves ``record.json`` in its directory.

    A trial that fails, or whose worker is killed, leaves a record that says so, and the others go on. An interrupt
    ends the sweep and leaves nothing for the trials that were running; raises KeyboardInterrupt then.
    """
    described = [
        {
            "name": trial.name,
            "arm": trial.arm,
            "grid": grid,
            "preset": preset,
            "experiment": trial.experiment.model_dump(mode="json"),
            "directory": str(trial.directory),
            "cpus": resources.cpus,
            "gpus": resources.gpus,
        }
        for trial in trials
    ]
    by_name = {trial.name: trial for trial in trials}
    for trial in trials:
        # What an earlier attempt left would pass for this one's.
        for leftover in (FILE, "error.txt", "metrics.json", "student.pth"):
            with contextlib.suppress(OSError):
                (trial.directory / leftover).unlink(missing_ok=True)
    follower = _Follower(by_name, grid, preset, display)
    with _ray():
        tuner = tune.Tuner(
            tune.with_resources(run_trial, {"cpu": resources.cpus, "gpu": resources.gpus}),
            param_space={"trial": tune.grid_search(described)},
            tune_config=tune.TuneConfig(
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                max_concurrent_trials=resources.side_by_side,
                # Importing torch and detectron2 takes longer than many a tiny trial's evaluation.
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(output.resolve()),
                verbose=0,
                callbacks=[follower],
            ),
        )
        tuner.fit()
    if follower.ended != set(by_name):
        raise KeyboardInterrupt


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """A local Ray for the sweep's time, or the cluster this process is in already."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
    else:
        # Trials exchange settings and progress only: the default store, a third of the memory, would be wasted.
        ray.init(address="local", num_cpus=_cores(), include_dashboard=False, object_store_memory=200 * 2**20, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _trial_name(trial: Any) -> str:
    return str(trial.config["trial"]["name"])


class _Follower(tune.Callback):
    """Passes on what Tune hears from the trials, and records those whose worker died."""

    def __init__(self, by_name: dict[str, Trial], grid: str, preset: str, display: Display) -> None:
        self._by_name, self._names, self._display = by_name, {"grid": grid, "preset": preset}, display
        self.ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a copy of its callbacks for its own resuming, which is not ours; a terminal cannot be copied.
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = _trial_name(trial)
        if "record" not in result:
            self._display.progress(name, result)
            return
        self._end(name, Record.model_validate_json(result["record"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # run_trial records its own errors, so here the worker itself is gone (killed, out of memory).
        name = _trial_name(trial)
        if name in self.ended:
            return
        planned = self._by_name[name]
        said = trial.get_error()
        reason = f"the worker died: {said}" if said else "the worker died"
        self._end(name, train.failure(planned.experiment, reason[:500], arm=planned.arm, **self._names))

    def _end(self, name: str, record: Record) -> None:
        directory = self._by_name[name].directory
        if not (directory / FILE).exists():
            try:
                record.save(directory)
            except OSError as error:
                reason = f"{record.reason} (and its record could not be written: {error})".strip()
                record = record.model_copy(update={"status": "failed", "reason": reason})
        self.ended.add(name)
        self._display.ended(name, record)


def done(trial: Trial) -> Record | None:
    """The record of a trial that needs no further run: finished, or diverged (it would diverge again).

    Raises InputError when the directory holds the record of another experiment.
    """
    path = trial.directory / FILE
    if not path.exists():
        return None
    record = load(path)
    planned = trial.experiment
    # Where a trial ran, and on how many threads, is the sweep's choice.
    found = record.experiment.model_copy(update={"threads": planned.threads, "device": planned.device})
    if found != planned:
        raise InputError(f"{path} holds another experiment than planned: {_difference(found, planned)}")
    return None if record.status == "failed" else record


def _difference(found: Experiment, planned: Experiment) -> str:
    ours, theirs = settings(planned), settings(found)
    return ", ".join(f"{k} is {theirs[k]!r} there and {ours[k]!r} here" for k in ours if ours[k] != theirs.get(k))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
