"""Run a sweep's trials under Ray Tune. The one file that knows Ray Tune.

A trial is a Tune function that holds all the resources it will use, in one placement group: it starts when all of them
are free, never with half, and whatever ends it (an early stop, a kill) frees them all. It trains in its own process, or
in several workers inside that group (:func:`lgd.distributed.ray_train.run_in_placement_group`).
"""

from __future__ import annotations

import contextlib
import math
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ablations.optuna_search import Search, objectives
from lgd.config.experiment import parse
from lgd.config.grids import Trial
from lgd.distributed import ray_train
from lgd.distributed.ray_train import Node, Workers
from lgd.errors import InputError
from lgd.results.cost_meter import read_heartbeat
from lgd.results.record import FILE, EvaluationPoint, Record, load
from lgd.training import checkpoint
from lgd.training import run as training
from lgd.training import teacher as teacher_training
from lgd.training.resume import existing_record
from lgd.training.run import EVALUATIONS_FILE

# Read by Ray Tune when it is imported, so set before it is. What it says is printed by display.py instead.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A search's objectives come with a trial's last report.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
# Paths in a trial's settings mean in its worker what they mean here.
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"

from ray import tune  # noqa: E402

RETRIES = 2
"""How often a trial whose worker died (killed, out of memory, its node lost) goes on from its checkpoint."""

STOP_FILE = "stop"
"""In the results directory: trials that see it write a checkpoint and end, and none begins."""

TEACHER = "teacher"
"""Arm of the trials that train FGFI's teachers."""


@dataclass(frozen=True)
class Resources:
    """What one trial holds, and how many run side by side. cpus, gpus: of each of its workers, gpus at most 1."""

    cpus: int
    gpus: float
    max_concurrent: int
    workers: int = 1
    spread: bool = False

    @property
    def devices(self) -> float:
        """That a trial is charged for (see lgd/results/cost_meter.py)."""
        return self.workers * (self.gpus or 1.0)


class Display(Protocol):
    """Who is told how the sweep goes. Trials are named by :attr:`Trial.name`."""

    def add(self, trial: Trial) -> None: ...

    def progress(self, name: str, progress: dict[str, Any]) -> None: ...

    def ended(self, name: str, record: Record) -> None: ...


@dataclass(frozen=True)
class Names:
    """What every record of a sweep says of it."""

    grid: str
    preset: str
    overrides: tuple[str, ...] = ()

    def of(self, arm: str) -> dict[str, Any]:
        return {"grid": self.grid, "preset": self.preset, "arm": arm, "overrides": list(self.overrides)}


@dataclass
class Outcome:
    """How a sweep ended. ended: names of the trials that have a record now. why: "" when all was run. spent:
    device-seconds."""

    ended: set[str] = field(default_factory=set)
    why: str = ""
    spent: float = 0.0


def resources_for(
    trials: Sequence[Trial],
    nodes: Sequence[Node],
    cpus: int | None,
    gpus: float | None,
    workers: int = 1,
    spread: bool = False,
) -> Resources:
    """One core a worker on the CPU: small networks gain more from running side by side than from more threads.

    With GPUs, one each, and the cores shared out. Raises InputError for what these nodes can never give.
    """
    devices = sum(int(node.gpus) for node in nodes)
    on_gpu = devices > 0 and any(t.experiment.device != "cpu" for t in trials)
    share = gpus if gpus is not None else float(on_gpu)
    if cpus is not None and cpus < 1:
        raise InputError(f"--cpus {cpus}: a trial needs at least one")
    if not 0 <= share <= 1:
        raise InputError(f"--gpus {share:g}: a worker trains on one GPU or a part of one; --workers takes several")
    if cpus is None:
        cpus = 1
        if share and devices:
            cpus = max(1, int(min(n.cpus / n.gpus for n in nodes if n.gpus) * share))
    held = Workers(workers, share, cpus, spread)
    for trial in trials:
        held.check(trial.experiment)
    return Resources(cpus, share, max(1, min(held.max_concurrent(nodes), len(trials) or 1)), workers, spread)


def this_machine() -> Node:
    """What a local Ray would have."""
    import torch

    return Node(ray_train.cores(), torch.cuda.device_count())


def run_trial(config: dict[str, Any]) -> None:
    """What a Ray worker runs: train one trial, leave its record in its directory whatever happens."""
    trial = config["trial"] if "trial" in config else Search.trial(config)
    directory, stop = Path(trial["directory"]), Path(trial["stop"])
    if stop.exists():
        tune.report({"stopped": 0})
        return
    if (directory / FILE).exists():
        # An earlier attempt ended with an error, and the worker after it; or a search asks for what it had before.
        _report(load(directory / FILE))
        return
    experiment, names = parse(trial["experiment"]), trial["names"]
    known: dict[str, Any] = {}

    def on_progress(progress: training.Progress) -> None:
        if progress["step"] >= progress["steps"]:
            # A scheduler must not end what has only its record to come: the last report is that one's.
            return
        known.update({k: v for k, v in progress.items() if k in ("AP", "spent")})
        # Once known they are part of every report, as a search's scheduler and its study expect.
        scores = {"AP": known["AP"], "gpu_hours": known.get("spent", 0.0) / 3600} if "AP" in known else {}
        tune.report({**progress, **scores})

    started = training.now()
    try:
        record = _trained(experiment, directory, stop, trial, on_progress)
    except training.Stopped as stopped:
        tune.report({"stopped": stopped.step})
        return
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        record = training.failed_record(experiment, reason, started=started, directory=directory, **names)
        saved = False
        with contextlib.suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            record.save(directory)
            saved = True
        if saved:
            # An error may have left this worker's GPU unusable. Raised on, it ends the worker; the next one finds the
            # record and reports it.
            raise
        _report(record)
        return
    _report(record)


def _trained(
    experiment: Any,
    directory: Path,
    stop: Path,
    trial: dict[str, Any],
    on_progress: Callable[[training.Progress], None],
) -> Record:
    names, teachers = trial["names"], Path(trial["teachers"])
    if trial["workers"] > 1:
        config = {
            "experiment": experiment.model_dump(mode="json"),
            "directory": str(directory),
            "teachers": str(teachers),
            "names": names,
            "stops": [str(stop)],
            "cpus": trial["cpus"],
            "gpus": trial["gpus"],
        }
        directory.mkdir(parents=True, exist_ok=True)
        outcome = ray_train.run_in_placement_group(
            config, Workers(trial["workers"], trial["gpus"], trial["cpus"]), on_progress
        )
        if "refused" in outcome:
            raise InputError(outcome["refused"])
        if "stopped" in outcome:
            raise training.Stopped(outcome["stopped"])
        return Record.model_validate_json(outcome["record"])
    experiment, share = ray_train.prepared(experiment, trial["cpus"], trial["gpus"]), trial["gpus"] or 1.0
    if names["arm"] == TEACHER:
        return teacher_training.trained(
            experiment, directory, on_progress=on_progress, should_stop=stop.exists, share=share, **names
        )
    return training.run(
        experiment, directory, teachers=teachers, on_progress=on_progress, should_stop=stop.exists, share=share, **names
    )


def _report(record: Record) -> None:
    """The last report of a trial. The driver may not see this worker's disk: the record travels with it."""
    tune.report({"record": record.model_dump_json(), "step": record.steps, **objectives(record)})


def run_sweep(
    trials: Sequence[Trial],
    names: Names,
    output: Path,
    resources: Resources,
    display: Display,
    *,
    search: Search | None = None,
    samples: int = 0,
    over: Callable[[float], str] = lambda _: "",
    callbacks: Sequence[tune.Callback] = (),
) -> Outcome:
    """Train every trial, then ``samples`` that ``search`` proposes; each leaves ``record.json`` in its directory.

    A trial that fails leaves a record that says so, and the others go on; one whose worker is killed goes on from its
    checkpoint, up to RETRIES times. FGFI's teachers are trained first, one trial each. over: asked again and again with
    the device-seconds that this call has spent; once it gives a reason, what runs ends with a checkpoint, and nothing
    more begins. Needs a running Ray (see :func:`lgd.distributed.ray_train.cluster`). An interrupt ends the sweep; raises
    KeyboardInterrupt then.
    """
    output = output.resolve()
    for trial in trials:
        # What a failed attempt left would pass for this one's. Its checkpoints stay: it goes on from them.
        for leftover in (FILE, "error.txt"):
            with contextlib.suppress(OSError):
                (trial.directory / leftover).unlink(missing_ok=True)
    (output / STOP_FILE).unlink(missing_ok=True)
    outcome = Outcome()
    follower = _Follower(names, output, display, over, outcome)
    # An arm that needs a teacher waits for it without holding anything.
    for wave in (_teachers(trials, output, display) + [t for t in trials if not t.experiment.teacher],
                 [t for t in trials if t.experiment.teacher]):  # fmt: skip
        if wave and not outcome.why:
            follower.expect(wave)
            wave = follower.drop_trials_with_failed_teacher(wave)
        if wave and not outcome.why:
            described = [_described(t, names, output, resources) for t in wave]
            _fit({"trial": tune.grid_search(described)}, output, resources, [follower, *callbacks])
            if not outcome.why and not follower.all_ended():
                raise KeyboardInterrupt
    if search is not None and samples and not outcome.why:
        base = _described(Trial("", search.base, output), names, output, resources)
        with search.opened(samples, base) as (algorithm, scheduler, left):
            if left:
                _fit({}, output, resources, [follower, *callbacks], algorithm, scheduler, left)
                if not outcome.why and follower.begun - outcome.ended:
                    raise KeyboardInterrupt
    (output / STOP_FILE).unlink(missing_ok=True)
    return outcome


def _fit(
    space: dict[str, Any],
    output: Path,
    resources: Resources,
    callbacks: Sequence[tune.Callback],
    algorithm: Any = None,
    scheduler: Any = None,
    samples: int = 1,
) -> None:
    bundle = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    several = resources.workers > 1
    held = tune.PlacementGroupFactory(
        # The trial's own process only watches its workers.
        [{}, *[bundle] * resources.workers] if several else [bundle],
        strategy="STRICT_SPREAD" if resources.spread else "PACK",
    )
    tune.Tuner(
        tune.with_resources(run_trial, held),
        param_space=space,
        tune_config=tune.TuneConfig(
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
            max_concurrent_trials=resources.max_concurrent,
            # Importing torch and detectron2 takes longer than many a tiny trial. A trial that a scheduler ends early
            # takes its worker with it.
            reuse_actors=not several and scheduler is None,
            search_alg=algorithm,
            scheduler=scheduler,
            num_samples=samples,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(output),
            verbose=0,
            callbacks=list(callbacks),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    ).fit()


def _described(trial: Trial, names: Names, output: Path, resources: Resources) -> dict[str, Any]:
    """A trial as plain values, as it travels to its worker."""
    return {
        "name": trial.name,
        "names": names.of(trial.arm),
        "experiment": trial.experiment.model_dump(mode="json"),
        "directory": str(trial.directory),
        "teachers": str(output / "teachers"),
        "stop": str(output / STOP_FILE),
        "cpus": resources.cpus,
        "gpus": resources.gpus,
        "workers": resources.workers,
    }


def _teachers(trials: Sequence[Trial], output: Path, display: Display) -> list[Trial]:
    """A trial for every teacher that the trials need and that is not there yet."""
    found: dict[Path, Trial] = {}
    for trial in trials:
        if trial.experiment.teacher is not None:
            home = teacher_training.home(trial.experiment.teacher, output / "teachers")
            wanted = Trial(TEACHER, trial.experiment.teacher, home)
            if done(wanted) is None:
                found[home] = wanted
    for wanted in found.values():
        display.add(wanted)
        (wanted.directory / FILE).unlink(missing_ok=True)
    return list(found.values())


def trial_name(trial: Any) -> str:
    """:attr:`Trial.name` of what Tune calls a trial."""
    described = trial.config["trial"] if "trial" in trial.config else Search.trial(trial.config)
    return str(described["name"])


class _Follower(tune.Callback):
    """Passes on what Tune hears from the trials, records those whose worker died, and watches the budget."""

    def __init__(
        self, names: Names, output: Path, display: Display, over: Callable[[float], str], outcome: Outcome
    ) -> None:
        self._names, self._output, self._display, self._over = names, output, display, over
        self._outcome = outcome
        self._by_name: dict[str, Trial] = {}
        self._spent: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._arms: dict[str, dict[str, Any]] = {}
        self.begun: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a copy of its callbacks for its own resuming, which is not ours; a terminal cannot be copied.
        return {}

    def expect(self, trials: Sequence[Trial]) -> None:
        self._by_name |= {trial.name: trial for trial in trials}
        self._before |= {trial.name: read_heartbeat(trial.directory).device_seconds for trial in trials}
        self.begun |= {trial.name for trial in trials}

    def drop_trials_with_failed_teacher(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials whose teacher, if they need one, was trained; the others get a record that says it was not."""
        left = []
        for trial in trials:
            teacher = trial.experiment.teacher
            path = teacher_training.home(teacher, self._output / "teachers") / FILE if teacher else None
            said = load(path) if path is not None and path.exists() else None
            if said is None or said.status == "finished":
                left.append(trial)
                continue
            reason = f"the teacher's training {said.status}: {said.reason}"
            self._end(trial.name, training.failed_record(trial.experiment, reason, **self._names.of(trial.arm)))
        return left

    def all_ended(self) -> bool:
        return self.begun <= self._outcome.ended

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial_name(trial)
        if name not in self._by_name:
            described = Search.trial(trial.config)
            proposed = Trial(described["names"]["arm"], parse(described["experiment"]), Path(described["directory"]))
            self._arms[name] = described["names"]
            self.expect([proposed])
            self._display.add(proposed)
        self._watch()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial_name(trial)
        if "record" in result:
            self._end(name, Record.model_validate_json(result["record"]))
        elif "stopped" not in result:
            self._spent[name] = result.get("spent", 0.0) - self._before[name]
            self._display.progress(name, result)
        self._watch()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial_name(trial)
        last = trial.last_result or {}
        if name not in self._outcome.ended and "stopped" not in last and "step" in last:
            self._end(name, self._stopped_early(self._by_name[name], last))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # run_trial records its own errors, so here the worker itself is gone (killed, out of memory).
        name = trial_name(trial)
        if name in self._outcome.ended:
            return
        planned = self._by_name[name]
        said = trial.get_error()
        reason = f"the worker died: {said}" if said else "the worker died"
        self._end(name, self._failure(planned, reason[:500]))

    def _stopped_early(self, planned: Trial, last: dict[str, Any]) -> Record:
        """The record of a trial that the scheduler ended, with the scores it had by then."""
        step = int(last["step"])
        reason = f"ended early after {step} of {planned.experiment.schedule.steps} steps: others were ahead"
        points: list[EvaluationPoint] = []
        with contextlib.suppress(OSError, ValueError):
            lines = (planned.directory / EVALUATIONS_FILE).read_text(encoding="utf-8").splitlines()
            points = [EvaluationPoint.model_validate_json(line) for line in lines]
        update = {
            "status": "stopped",
            "steps": step,
            "evaluations": points,
            "student": points[-1].student if points else None,
            "device_seconds": {"training": round(float(last.get("spent", 0.0)), 3)},
        }
        checkpoint.remove(planned.directory)
        return self._failure(planned, reason).model_copy(update=update)

    def _failure(self, planned: Trial, reason: str) -> Record:
        names = self._arms.get(planned.name) or self._names.of(planned.arm)
        return training.failed_record(planned.experiment, reason, directory=planned.directory, **names)

    def _end(self, name: str, record: Record) -> None:
        if name in self._outcome.ended:
            return
        directory = self._by_name[name].directory
        spent = math.fsum(record.device_seconds.values()) - self._before[name]
        self._spent[name] = max(spent, self._spent.get(name, 0.0))
        if not (directory / FILE).exists():
            try:
                record.save(directory)
            except OSError as error:
                reason = f"{record.reason} (and its record could not be written: {error})".strip()
                record = record.model_copy(update={"status": "failed", "reason": reason})
        self._outcome.ended.add(name)
        self._display.ended(name, record)

    def _watch(self) -> None:
        self._outcome.spent = math.fsum(self._spent.values())
        if self._outcome.why:
            return
        self._outcome.why = self._over(self._outcome.spent)
        if self._outcome.why:
            (self._output / STOP_FILE).touch()


def done(trial: Trial) -> Record | None:
    """The record of a trial that needs no further run (see :func:`lgd.results.record.earlier`)."""
    return existing_record(trial.directory, trial.experiment)
