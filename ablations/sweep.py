"""Running a sweep: the lock on its directory, the checks, Ray, and the trials."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console

from ablations.checks import Checked, check, code_version, missing_trials
from ablations.display import SweepDisplay, say
from ablations.limits import INTERRUPTED, Budget, CostOptions, Placement
from ablations.plan import Sweep, trials_of
from ablations.status import searched_trials
from lgd.config.grids import Trial
from lgd.errors import InputError
from lgd.results.sweep_spec import SweepSpec
from lgd.signals import on_signal

if TYPE_CHECKING:
    from ablations.optuna_search import Search
    from lgd.distributed.resources import Resources


@dataclass(frozen=True)
class RunOptions:
    """What a command on a sweep is asked for besides the sweep itself."""

    placement: Placement = field(default_factory=Placement)
    accept_other_code: bool = False

    @property
    def address(self) -> str | None:
        """Of a running Ray cluster; None for one of this machine."""
        return self.placement.address or os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[FileLock]:
    """Inside, no other sweep is at work in ``directory``.

    A directory without a lock file nobody is at work in: that lock is for the caller to acquire, once the directory is
    made.
    """
    lock = FileLock(directory / "lock", timeout=0)
    try:
        if Path(lock.lock_file).exists():
            lock.acquire()
        yield lock
    except Timeout:
        raise InputError(
            f"{directory}: another sweep is at work there; wait for it, or choose another --output"
        ) from None
    finally:
        lock.release(force=True)


def run(spec: SweepSpec, directory: Path, options: RunOptions, budget: Budget, console: Console) -> int:
    """Run what the sweep still lacks; show and write its tables.

    Exit status: 0 all trials finished, 1 some failed or diverged, 3 budget spent, 130 interrupted.
    """
    with locked(directory) as lock:
        sweep = trials_of(spec, directory)
        checked = check(sweep, options.accept_other_code, console)
        with cluster(checked, options, console) as resources:
            from ablations.outcome import finish

            directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            # Another sweep may have been at work here until a moment ago.
            missing = missing_trials(sweep.trials)
            why, spent = train(sweep, missing, resources, checked.search, budget, 0.0, console)
            more = sweep if why else trials_of(sweep.spec, directory)
            if len(more.trials) > len(sweep.trials):
                # What these trials took says how long others are to train.
                sweep, missing = more, missing_trials(more.trials)
                resources = _resources(missing, options)
                why, _ = train(sweep, missing, resources, None, budget, spent, console)
            resume = f"python ablations/run.py --resume {directory}{options.placement.options}"
            return finish(sweep, checked.search, why, resume, console)


def dry_run(spec: SweepSpec, directory: Path, options: RunOptions, cost: CostOptions, console: Console) -> int:
    """Check a sweep, and show what would run and what it will take."""
    from ablations.dry_run import show_cost, show_plan

    sweep = trials_of(spec, directory)
    checked = check(sweep, options.accept_other_code, console)
    with contextlib.ExitStack() as stack:
        if options.address:
            resources = stack.enter_context(cluster(checked, options, console))
        else:
            resources = _this_machine(checked.planned, options)
        show_plan(sweep, checked, resources, console)
        show_cost(checked, resources, cost, console)
    return 0


@contextlib.contextmanager
def cluster(checked: Checked, options: RunOptions, console: Console) -> Iterator[Resources]:
    """Ray, and what each trial holds there. What can never fit is refused before Ray starts."""
    if not options.address:
        _this_machine(checked.planned, options)
    from lgd.distributed import ray_train

    with ray_train.cluster(options.address):
        yield _resources(checked.planned, options)


def _this_machine(trials: Sequence[Trial], options: RunOptions) -> Resources:
    from ablations.placement import resources_for, this_machine

    return resources_for(trials, [this_machine()], options.placement)


def _resources(trials: Sequence[Trial], options: RunOptions) -> Resources:
    from ablations.placement import resources_for
    from lgd.distributed import ray_train

    return resources_for(trials, ray_train.nodes(), options.placement)


def train(
    sweep: Sweep,
    missing: Sequence[Trial],
    resources: Resources,
    search: Search | None,
    budget: Budget,
    spent: float,
    console: Console,
) -> tuple[str, float]:
    """Train the ``missing`` trials, then what ``search`` proposes.

    spent: device-seconds of this command so far. Returns why it ended before all was run ("" if it did not), and the
    device-seconds that it took.
    """
    from ablations.ray_sweep import run_sweep
    from ablations.trial_config import RecordLabels

    spec = sweep.spec = sweep.spec.model_copy(update={"ended": None, "code": code_version()})
    spec.write(sweep.directory)
    samples = search.samples if search else 0
    with_search = f" and {samples} samples of a search" if search else ""
    say(
        console,
        f"{spec.grid} grid, preset {spec.preset}: {len(sweep.trials)} trials{with_search}, {len(missing)} to run,"
        f" {resources.description}; results in {sweep.directory}",
    )
    if not missing and not search:
        return "", 0.0
    display = SweepDisplay(
        missing,
        total=len(sweep.trials) + samples,
        finished=len(sweep.trials) - len(missing) + (searched_trials(sweep.directory) if search else 0),
        max_concurrent=resources.max_concurrent,
        console=console,
    )
    terminated = threading.Event()

    def exceeded(device_seconds: float) -> str:
        return "SIGTERM came" if terminated.is_set() else budget.exceeded(spent + device_seconds)

    labels = RecordLabels(spec.grid, spec.preset, spec.overrides)
    try:
        with display, on_signal(terminated.set, signal.SIGTERM):
            ended = run_sweep(
                missing, labels, sweep.directory, resources, display, search=search, budget_exceeded=exceeded
            )
    except KeyboardInterrupt:
        # A second Ctrl-C would cut the tables short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED, 0.0
    _learn(missing, resources)
    return ended.why, ended.spent


def _learn(trials: Sequence[Trial], resources: Resources) -> None:
    """What the trials took is what the next dry run predicts with."""
    from benchmarks.measure_cost import learn

    with contextlib.suppress(OSError):
        learn(trials, resources)
