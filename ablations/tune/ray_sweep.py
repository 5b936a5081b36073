"""Run a sweep's trials under Ray Tune.

A trial is a Tune function that holds all the resources it will use, in one placement group: it starts when all of them
are free, never with half, and whatever ends it (an early stop, a kill) frees them all. It trains in its own process, or
in several workers inside that group (:func:`lgd.distributed.ray_train.launch_in_placement_group`).
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.begun_trials import last_checkpoint
from ablations.remote_output import try_to_publish
from ablations.search.lost_records import stopped_record
from ablations.search.study_place import StudyUnreachableError
from ablations.sweep_display import Display
from ablations.trial_config import ERROR_FILE, STOP_FILE, RecordLabels, trial_config
from ablations.tune.ray_log import RAY_LOG, ray_log
from ablations.tune.ray_trial import config_of, run_trial
from ablations.tune.teacher_trials import teacher_trials, untaught, why_not_searched
from ablations.tune.tune_patches import last_error, lost_workers_fail_alone
from lgd.config.experiment import parse
from lgd.config.grids import Trial
from lgd.distributed.resources import Resources
from lgd.files import write_text
from lgd.results.cost_meter import read_heartbeat
from lgd.results.record import FILE, Record
from lgd.signals import keep_handlers
from lgd.storage import outputs
from lgd.training.resume import remove_resume_files
from lgd.training.run import failed_record

# Read by Ray Tune when it is imported, so set before it is. What it says is printed by display.py instead.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A search's objectives come with a trial's last report.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # A sweep goes on from its records. Tune's own state, which it would write every few seconds, has all trials in it.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    # Trials that may wait for room where nodes can join: what an autoscaler sees, and what a node finds that joins.
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
}
os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
# Paths in a trial's settings mean in its worker what they mean here.
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"

from ray import tune  # noqa: E402

from ablations.tune.planned_trials import PlannedTrials  # noqa: E402
from ablations.tune.stop_when_idle import StopWhenIdle  # noqa: E402

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    from ablations.search.optuna_search import Search

RETRIES = 2
"""How often, without a new checkpoint in between, a trial goes on whose worker died (killed, out of memory, its node
lost)."""


@dataclass
class Outcome:
    """How a sweep ended."""

    ended: set[str] = field(default_factory=set)
    """Names of the trials that have a record now."""
    why: str = ""
    """\"" when all was run."""
    spent: float = 0.0
    """Device-seconds."""
    unsearched: str = ""
    """Why the search proposed nothing, where every trial of it would fail."""


def run_sweep(
    trials: Sequence[Trial],
    labels: RecordLabels,
    output: Path,
    resources: Resources,
    display: Display,
    *,
    search: Search | None = None,
    budget_exceeded: Callable[[float], str] = lambda _: "",
    callbacks: Sequence[tune.Callback] = (),
) -> Outcome:
    """Train every trial, then those that ``search`` proposes; each leaves ``record.json`` in its directory.

    A trial that fails leaves a record that says so, and the others go on; one whose worker is killed goes on from its
    checkpoint (see RETRIES). Frozen teachers are trained first, one trial each. budget_exceeded: called again
    and again with the device-seconds that this call has spent; once it returns a reason, what runs ends with a
    checkpoint, and nothing more begins. Needs a running Ray (see :func:`lgd.distributed.ray_train.cluster`). An
    interrupt ends the sweep; raises KeyboardInterrupt then.
    """
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    # Tune leaves a handler of its own for Ctrl-C behind.
    with ray_log(output / RAY_LOG), lost_workers_fail_alone(), keep_handlers(signal.SIGINT):
        return _run_sweep(trials, labels, output, resources, display, search, budget_exceeded, callbacks)


def _run_sweep(
    trials: Sequence[Trial],
    labels: RecordLabels,
    output: Path,
    resources: Resources,
    display: Display,
    search: Search | None,
    budget_exceeded: Callable[[float], str],
    callbacks: Sequence[tune.Callback],
) -> Outcome:
    _remove_leftovers(trials, output)
    outcome = Outcome()
    callback = SweepCallback(labels, output, display, budget_exceeded, outcome)
    searched = [Trial("", search.base, output)] if search is not None and search.left() else []
    teachers = teacher_trials([*trials, *searched], output)
    for teacher in teachers:
        display.add(teacher)
        outputs.remove(teacher.directory / FILE)
    # An arm that needs a teacher waits for it without holding anything.
    for wave in (
        [*teachers, *(t for t in trials if not t.experiment.needs_teacher)],
        [t for t in trials if t.experiment.needs_teacher],
    ):
        if wave and not outcome.why:
            callback.expect(wave)
            wave = callback.drop_trials_with_failed_teacher(wave)
        if wave and not outcome.why:
            planned = PlannedTrials((trial_config(t, labels, output, resources) for t in wave), output / STOP_FILE)
            _fit(planned, len(wave), output, resources, callback, callbacks)
            if not outcome.why and not callback.all_ended():
                raise KeyboardInterrupt
    if searched and not outcome.why:
        outcome.unsearched = why_not_searched(searched[0].experiment, output)
    if search is not None and not (outcome.why or outcome.unsearched):
        base = trial_config(Trial("", search.base, output), labels, output, resources)
        try:
            with search.opened(base, callback.to_end) as (algorithm, scheduler, left):
                if left:
                    _fit(algorithm, left, output, resources, callback, callbacks, scheduler)
                    if not outcome.why and not callback.all_ended():
                        raise KeyboardInterrupt
        except StudyUnreachableError as error:
            outcome.why = outcome.why or str(error)
    (output / STOP_FILE).unlink(missing_ok=True)
    return outcome


def _remove_leftovers(trials: Sequence[Trial], output: Path) -> None:
    """Remove the record and error of a failed attempt. Its checkpoints stay: the trial goes on from them."""
    for trial in trials:
        for leftover in (trial.directory / FILE, trial.directory / ERROR_FILE):
            with contextlib.suppress(OSError):
                if leftover.exists():
                    outputs.remove(leftover)
    outputs.remove(output / STOP_FILE)


def _fit(
    algorithm: Searcher,
    samples: int,
    output: Path,
    resources: Resources,
    callback: SweepCallback,
    callbacks: Sequence[tune.Callback],
    scheduler: TrialScheduler | None = None,
) -> None:
    """Run the ``samples`` trials that ``algorithm`` proposes."""
    bundle = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    several = resources.workers > 1
    # A search has to see results before it proposes more.
    unlimited = resources.may_grow and isinstance(algorithm, PlannedTrials)
    group = tune.PlacementGroupFactory(
        # The trial's own process only watches its workers.
        [{}, *[bundle] * resources.workers] if several else [bundle],
        strategy="STRICT_SPREAD" if resources.spread else "PACK",
    )
    tune.Tuner(
        tune.with_resources(run_trial, group),
        tune_config=tune.TuneConfig(
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
            max_concurrent_trials=None if unlimited else resources.max_concurrent,
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
            callbacks=[callback, *callbacks],
            stop=callback.stopper,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    ).fit()


def trial_name(trial: Any) -> str:
    """:attr:`Trial.name` of what Tune calls a trial."""
    return config_of(trial.config)["name"]


class SweepCallback(tune.Callback):
    """Passes on what Tune hears from the trials, records those whose worker died, and watches the budget."""

    def __init__(
        self,
        labels: RecordLabels,
        output: Path,
        display: Display,
        budget_exceeded: Callable[[float], str],
        outcome: Outcome,
    ) -> None:
        self._labels, self._output, self._display = labels, output, display
        self._budget_exceeded, self._outcome = budget_exceeded, outcome
        self._trials: dict[str, Trial] = {}
        self._spent: dict[str, float] = {}
        self._spent_by_all = 0.0
        self._spent_before: dict[str, float] = {}
        self._searched_labels: dict[str, dict[str, Any]] = {}
        self._gone_on_from: dict[str, int] = {}
        self.stopper = StopWhenIdle()

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a copy of its callbacks for its own resuming, which is not ours; a terminal cannot be copied.
        return {}

    def expect(self, trials: Sequence[Trial]) -> None:
        """These trials are run next."""
        self._trials |= {trial.name: trial for trial in trials}
        self._spent_before |= {trial.name: read_heartbeat(trial.directory).device_seconds for trial in trials}

    def drop_trials_with_failed_teacher(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials whose teacher, if they need one, was trained; the others get a record that says it was not."""
        left = []
        for trial in trials:
            if reason := untaught(trial.experiment, self._output):
                self._end(trial.name, failed_record(trial.experiment, reason, **self._labels.of(trial.arm)))
            else:
                left.append(trial)
        return left

    def all_ended(self) -> bool:
        """Whether every trial that was begun has a record."""
        return self._trials.keys() <= self._outcome.ended

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        # Also while no trial runs.
        self.stopper.update(trials, to_end=self.to_end())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config = config_of(trial.config)
        if config["name"] not in self._trials:
            directory = self._output / "trials" / config["name"]
            proposed = Trial(config["labels"]["arm"], parse(config["experiment"]), directory)
            self._searched_labels[config["name"]] = config["labels"]
            self.expect([proposed])
            self._display.add(proposed)
        self._watch_budget()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial_name(trial)
        if "record" in result:
            # Taken out: Tune keeps the last result of every trial.
            self._end(name, Record.model_validate_json(result.pop("record")), by_worker=True)
        elif "unpublished" in result:
            self._stop(result["unpublished"])
        elif "stopped" not in result:
            self._set_spent(name, result.get("spent", 0.0) - self._spent_before[name])
            self._display.progress(name, result)
        self._watch_budget()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial_name(trial)
        last = trial.last_result or {}
        if name not in self._outcome.ended and "stopped" not in last and "step" in last:
            planned = self._trials[name]
            step, spent = int(last["step"]), float(last.get("spent", 0.0))
            record = stopped_record(planned.experiment, planned.directory, self._labels_of(planned), step, spent)
            self._end(name, record)
            if (planned.directory / FILE).exists():
                # Only then: without a record they are all that is left of it.
                remove_resume_files(planned.directory, record)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial_name(trial)
        there = outputs.names_in(self._trials[name].directory)
        if FILE in there:
            # It has recorded its own error, and the next worker only reports that.
            return
        low = "low on memory" in last_error(trial)
        step = last_checkpoint(there)
        if (step or 0) > self._gone_on_from.get(name, 0):
            # A long trial may outlive more nodes than RETRIES: only attempts that got nowhere are counted.
            self._gone_on_from[name] = step or 0
            trial.run_metadata.num_failures = 0
        start = "begins again" if step is None else f"goes on from its checkpoint after step {step}"
        cause = "Ray ended its worker since memory ran low" if low else "its worker died"
        self._display.restarted(name, f"{cause}; it {start} (see {outputs.shown(self._output / RAY_LOG)})")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # run_trial records its own errors, so here the worker itself is gone (killed, out of memory).
        name = trial_name(trial)
        if name in self._outcome.ended:
            return
        error = last_error(trial)
        planned = self._trials[name]
        if error:
            with contextlib.suppress(OSError):
                write_text(planned.directory / ERROR_FILE, f"{error}\n")
                try_to_publish(planned.directory / ERROR_FILE)
        lines = [line for line in error.splitlines() if line.strip()]
        # The last line of a traceback says what was raised.
        reason = f"the worker died: {lines[-1].strip()}" if lines else "the worker died"
        self._end(name, self._failure(planned, reason[:500]))

    def _failure(self, planned: Trial, reason: str) -> Record:
        return failed_record(planned.experiment, reason, directory=planned.directory, **self._labels_of(planned))

    def _labels_of(self, planned: Trial) -> dict[str, Any]:
        return self._searched_labels.get(planned.name) or self._labels.of(planned.arm)

    def _end(self, name: str, record: Record, *, by_worker: bool = False) -> None:
        if name in self._outcome.ended:
            return
        directory = self._trials[name].directory
        spent = math.fsum(record.device_seconds.values()) - self._spent_before[name]
        self._set_spent(name, max(spent, self._spent.get(name, 0.0)))
        if not (directory / FILE).exists():
            try:
                record.save(directory)
                if not by_worker:
                    try_to_publish(directory / FILE)
            except OSError as error:
                reason = f"{record.reason} (and its record could not be written: {error})".strip()
                record = record.model_copy(update={"status": "failed", "reason": reason})
        self._outcome.ended.add(name)
        self._display.ended(name, record)

    def _set_spent(self, name: str, seconds: float) -> None:
        """A trial has spent so many device-seconds in this call."""
        # Not the sum of all trials, which at each report of each trial would be quadratic in their number.
        self._spent_by_all += seconds - self._spent.get(name, 0.0)
        self._spent[name] = seconds

    def to_end(self) -> bool:
        """Whether the sweep is to end; looks at the budget."""
        self._watch_budget()
        return bool(self._outcome.why)

    def _watch_budget(self) -> None:
        self._outcome.spent = self._spent_by_all
        if not self._outcome.why:
            self._stop(self._budget_exceeded(self._outcome.spent))

    def _stop(self, why: str) -> None:
        self._outcome.why = self._outcome.why or why
        if self._outcome.why:
            (self._output / STOP_FILE).touch()
