"""Running a sweep: the lock on its directory, the checks, Ray, and the trials."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console

from ablations.checks import Checked, check, missing_trials, prepare
from ablations.code_version import code_version
from ablations.cpu_time import check_cpu_time, cpu_note
from ablations.damaged import set_aside
from ablations.display import SweepDisplay, say
from ablations.finished_trials import remove_finished_resume_files
from ablations.limits import INTERRUPTED, TERMINATED, Budget, CostOptions, Placement
from ablations.named_code import code_options
from ablations.plan import Sweep, trials_of
from ablations.remote_output import at_work
from ablations.rounds import after
from ablations.search.study_place import study_option
from ablations.status import show_damaged
from ablations.trial_config import TEACHERS
from lgd.config.grids import Trial
from lgd.errors import InputError
from lgd.files import DiskFullError, remove_temporary_files
from lgd.results.record import FILE
from lgd.results.sweep_spec import SWEEP_FILE, SweepSpec
from lgd.signals import exit_on_interrupt, interrupt, keep_handlers, on_signal
from lgd.storage import outputs
from lgd.storage.outputs import shown
from lgd.storage.store import StorageError

if TYPE_CHECKING:
    from ablations.search.optuna_search import Search
    from lgd.distributed.resources import Resources


@dataclass(frozen=True)
class RunOptions:
    """Options of a command on a sweep, besides the sweep's own."""

    placement: Placement = field(default_factory=Placement)
    accept_other_code: bool = False
    yes: bool = False
    """Train even where that takes more than a day on the CPU."""
    retrain_damaged: bool = False
    """Train again what has a record that cannot be read."""

    @property
    def address(self) -> str | None:
        """Address of a running Ray cluster; None to start one on this machine."""
        return self.placement.address or os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[FileLock]:
    """Inside, no other sweep is at work in ``directory``.

    A directory without a lock file nobody is at work in: that lock is for the caller to acquire, once the directory is
    made. One that holds nothing else afterwards is removed.
    """
    path = directory / "lock"
    lock = FileLock(path, timeout=0)
    try:
        if path.exists():
            lock.acquire()
        yield lock
    except Timeout:
        raise InputError(
            f"{directory}: another sweep is at work there; wait for it, or choose another --output"
        ) from None
    finally:
        if lock.is_locked and [*directory.iterdir()] == [path]:
            path.unlink()
            directory.rmdir()
        lock.release(force=True)


def resume_command(directory: Path, spec: SweepSpec, placement: Placement | None = None) -> str:
    """The command that goes on with a sweep."""
    options = study_option(spec.search.study, directory) if spec.search else ""
    options += placement.options if placement else ""
    return f"python ablations/run.py --resume {shlex.quote(shown(directory))}{code_options(spec)}{options}"


def run(spec: SweepSpec, directory: Path, options: RunOptions, budget: Budget, console: Console) -> int:
    """Run what the sweep still lacks; show and write its tables.

    Exit status: 0 all trials finished, 1 some failed or diverged, 2 the disk is full, 3 budget spent, or its store did
    not answer, 130 interrupted.
    """
    try:
        # What answers Ctrl-C meanwhile is not what answers it afterwards.
        with keep_handlers(signal.SIGINT), on_signal(interrupt, signal.SIGTERM):
            return _run(spec, directory, options, budget, console)
    except (KeyboardInterrupt, OSError) as error:
        why, status = _cause(error, directory)
        # Before there is a sweep to go on with, it is the user's input that is wrong.
        if not why or not (directory / SWEEP_FILE).exists():
            if full := _disk_full(error, directory):
                raise full.with_note("no trial was begun: make space there and give the same command again") from None
            raise
        say(console, f"{why}; go on with: {resume_command(directory, spec, options.placement)}")
        return status


def _cause(error: KeyboardInterrupt | OSError, directory: Path) -> tuple[str, int]:
    """What ends a sweep that can go on, and the exit status; "" for what is none of that."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, 130
    if isinstance(error, StorageError):
        return str(error), 3
    full = _disk_full(error, directory)
    return (str(full), 2) if full else ("", 0)


def _disk_full(error: BaseException, directory: Path) -> DiskFullError | None:
    """The error as what it is where a full disk caused it."""
    if isinstance(error, DiskFullError):
        return error
    return DiskFullError.of(error, directory) if isinstance(error, OSError) else None


def _run(spec: SweepSpec, directory: Path, options: RunOptions, budget: Budget, console: Console) -> int:
    with at_work(directory, console), locked(directory) as lock:
        if options.retrain_damaged:
            set_aside(path.parent for kind in ("trials", TEACHERS) for path in directory.glob(f"{kind}/*/{FILE}"))
        sweep = trials_of(spec, directory)
        checked = prepare(sweep, console)
        resources = None
        if not options.address:
            # What can never fit is refused before the arms are built and Ray starts.
            resources = _this_machine(checked.to_train, options)
            if not resources.gpus and not options.yes:
                check_cpu_time(checked.to_train, resources.max_concurrent, console)
        check(sweep, checked, console, accept_other_code=options.accept_other_code, resources=resources)
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        remove_temporary_files(directory)
        remove_finished_resume_files(directory)
        # An earlier command may have left it, also where nothing is left to run.
        outputs.remove(directory / outputs.STOP_FILE)
        # Ray has a handler of its own for SIGTERM, which ends the process without a word.
        with (
            cluster(checked, options, console) as resources,
            on_signal(interrupt, signal.SIGTERM),
            _ray_watched(spec, directory, budget, options, console),
        ):
            if options.address and not resources.gpus and not options.yes:
                # Its nodes are known only now; those with GPUs may be ones that an autoscaler is to add.
                check_cpu_time(checked.to_train, resources.max_concurrent, console)
            _check_shared(directory, resources)
            # Another sweep may have been at work here until a moment ago.
            missing = missing_trials(sweep.trials)
            why, spent = train(sweep, missing, resources, checked.search, budget, 0.0, console)
            same = _as_before(options, resources)
            while not why:
                # What these trials took says how long others are to train, and what they gave how many seeds more.
                following, why = after(sweep, budget, partial(_side_by_side, same, resources), console, spent)
                if following is None:
                    break
                sweep, missing = following, missing_trials(following.trials)
                # Where all nodes have gone meanwhile, others may come, as in the middle of a round.
                with contextlib.suppress(InputError):
                    resources = _resources(missing, same)
                why, took = train(sweep, missing, resources, None, budget, spent, console)
                spent += took
            from ablations.outcome import finish

            return finish(sweep, checked.search, why, resume_command(directory, spec, options.placement), console)


@contextlib.contextmanager
def _ray_watched(
    spec: SweepSpec, directory: Path, budget: Budget, options: RunOptions, console: Console
) -> Iterator[None]:
    """Inside, a Ray that ends is a reason for the sweep to end, and it ends."""
    from ablations.tune.ray_watch import RayWatch, end_at_once, head_address, own_processes

    def give_up(why: str) -> None:
        say(console, f"{why}, and the sweep with it; go on with: {resume_command(directory, spec, options.placement)}")
        console.file.flush()
        end_at_once(3)

    processes = {} if options.address else own_processes()
    with RayWatch(directory / outputs.STOP_FILE, give_up, processes=processes, address=head_address()) as watch:
        budget.other_reason = lambda: watch.lost
        yield


def _as_before(options: RunOptions, resources: Resources) -> RunOptions:
    """The options of later rounds: where only nodes without a GPU are left, they wait for others, as running trials do,
    and do not train there."""
    return replace(options, placement=replace(options.placement, gpus=resources.gpus))


def _side_by_side(options: RunOptions, before: Resources, trials: Sequence[Trial]) -> int:
    """How many of ``trials`` run at a time; as many as ``before`` where no node is there now."""
    with contextlib.suppress(InputError):
        return _resources(trials, options).max_concurrent
    return before.max_concurrent


def dry_run(
    spec: SweepSpec, directory: Path, options: RunOptions, cost: CostOptions, console: Console, *, verbose: bool = False
) -> int:
    """Check a sweep, and show what would run and what it will take. Raises InputError for all that is in the way."""
    sweep = trials_of(spec, directory)
    if options.retrain_damaged:
        # As if they had been set aside.
        sweep = replace(sweep, trials=[*sweep.trials, *sweep.damaged_trials], damaged=[], damaged_trials=[])
    checked = prepare(sweep, console, all_problems=True, retrain_damaged=options.retrain_damaged)
    with contextlib.ExitStack() as stack:
        if options.address:
            resources = stack.enter_context(cluster(checked, options, console))
        else:
            resources = _this_machine(checked.to_train, options)
        local = None if options.address else resources
        again, other = options.retrain_damaged, options.accept_other_code
        check(sweep, checked, console, accept_other_code=other, retrain_damaged=again, resources=local)
        from ablations.dry_run import show_plan

        show_plan(sweep, checked, resources, cost, verbose, console)
    show_damaged(sweep.damaged, resume_command(directory, spec), console)
    if not options.yes and not resources.gpus and (note := cpu_note(checked.to_train)):
        say(console, note)
    say(console, "ready")
    return 0


@contextlib.contextmanager
def cluster(checked: Checked, options: RunOptions, console: Console) -> Iterator[Resources]:
    """Ray, and what each trial holds there."""
    say(console, f"connecting to Ray at {options.address} ..." if options.address else "starting Ray ...")
    with exit_on_interrupt():
        from lgd.distributed import ray_train

    with ray_train.cluster(options.address):
        yield _resources(checked.to_train, options)


def _check_shared(directory: Path, resources: Resources) -> None:
    from lgd.distributed.shared_disk import check_shared

    check_shared(directory, resources.cpus, resources.gpus)


def _this_machine(trials: Sequence[Trial], options: RunOptions) -> Resources:
    with exit_on_interrupt():
        from ablations.placement import resources_for, this_machine

    return resources_for(trials, [this_machine()], options.placement)


def _resources(trials: Sequence[Trial], options: RunOptions) -> Resources:
    from ablations.placement import resources_for
    from lgd.distributed import ray_train

    there = resources_for(trials, ray_train.nodes(), options.placement)
    return replace(there, may_grow=options.address is not None)


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
    with exit_on_interrupt():
        from ablations.trial_config import RecordLabels
        from ablations.tune.ray_sweep import run_sweep

    spec = sweep.spec = sweep.spec.model_copy(update={"ended": None, "code": code_version(sweep.spec)})
    spec.write(sweep.directory)
    samples, sampled = (search.samples, len(search.ended())) if search else (0, 0)
    with_search = f" and {samples} samples of a search" if search else ""
    say(
        console,
        f"{spec.grid} grid, preset {spec.preset}: {len(sweep.trials)} trials{with_search}, {len(missing)} to run,"
        f" {resources.description}; results in {shown(sweep.directory)}",
    )
    if not missing and not search:
        return "", 0.0
    display = SweepDisplay(
        missing,
        total=len(sweep.trials) + samples,
        finished=len(sweep.trials) - len(missing) + sampled,
        max_concurrent=resources.max_concurrent,
        console=console,
    )
    terminated = threading.Event()

    def exceeded(device_seconds: float) -> str:
        return TERMINATED if terminated.is_set() else budget.exceeded(spent + device_seconds)

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
    if ended.unsearched:
        say(console, ended.unsearched)
    # It may have come after the last look at the budget: no further round is to begin.
    why = ended.why or (TERMINATED if terminated.is_set() else "")
    return why, ended.spent


def _learn(trials: Sequence[Trial], resources: Resources) -> None:
    """Keep the costs of the finished trials for the next prediction."""
    from benchmarks.measure_cost import update_from_records

    with contextlib.suppress(OSError):
        update_from_records(trials, resources)
