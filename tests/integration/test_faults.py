"""Faults, each injected into a real sweep: no trial is lost or counted twice, and nothing is left running."""

from __future__ import annotations

import errno
import json
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from ablations.checks import missing_trials
from ablations.trial_config import RecordLabels
from ablations.tune import ray_sweep
from ablations.tune.ray_sweep import Outcome, run_sweep
from lgd.config.grids import Trial
from lgd.distributed.resources import Resources
from lgd.results.cost_meter import read_heartbeat
from lgd.results.record import FILE, Record, load
from tests.conftest import once_per_run
from tests.helpers import quick_experiment, unsaved
from tests.integration.commands import QUICK, run

LABELS = RecordLabels("components", "nano")
LONG: dict[str, Any] = {"schedule.steps": 150, "checkpoint.every": 30, "method.name": "baseline", "schedule.batch": 4}

pytestmark = pytest.mark.slow


class _Display:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Record]] = []
        self.steps: dict[str, int] = {}
        self.restarts: list[str] = []

    def add(self, trial: Trial) -> None: ...

    def progress(self, name: str, progress: dict[str, Any]) -> None:
        self.steps[name] = progress["step"]

    def restarted(self, name: str, cause: str) -> None:
        self.restarts.append(f"{name}: {cause}")

    def ended(self, name: str, record: Record) -> None:
        self.records.append((name, record))


def _trials(output: Path, **arms: dict[str, Any]) -> list[Trial]:
    return [
        Trial(arm, quick_experiment(**changes), output / "trials" / f"{arm}-seed0") for arm, changes in arms.items()
    ]


def _sweep(trials: list[Trial], output: Path, resources: Resources) -> tuple[_Display, Outcome]:
    display = _Display()
    return display, run_sweep(trials, LABELS, output, resources, display)


def _at_work_on(trial: Trial) -> list[psutil.Process]:
    """The processes that have a file of a trial open, such as the one that it writes its losses to."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(Path(x.path).is_relative_to(trial.directory) for x in process.open_files()):
                found.append(process)
    return found


def _kill_workers_of(trial: Trial, number: signal.Signals = signal.SIGKILL) -> int:
    """How many there were."""
    found = _at_work_on(trial)
    for process in found:
        with suppress(psutil.Error):
            process.send_signal(number)
    return len(found)


class _Injected:
    """A thread that tries ``act`` again and again until it says that something was done; used around a sweep."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act, self._over = act, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.done = False

    def __enter__(self) -> _Injected:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self.done and not self._over.wait(0.02):
            self.done = bool(self._act())


class Faulty(NamedTuple):
    """A sweep in which all kinds of things went wrong, each to one trial. trials: by arm, in the order of the sweep."""

    trials: dict[str, Trial]
    display: _Display
    outcome: Outcome
    injected: dict[str, bool]

    def record(self, arm: str) -> Record:
        return load(self.trials[arm].directory / FILE)


ENDS = {
    "raising": "failed",
    "diverging": "diverged",
    "hungry": "failed",
    "killed": "finished",
    "terminated": "finished",
    "failing": "failed",
    "good": "finished",
}
"""How each trial ends that has a record."""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Faulty:
    """A sweep that is run once, whichever of pytest's processes need it."""

    def make(directory: Path) -> Faulty:
        request.getfixturevalue("ray_session")
        return _run_faulty(directory)

    return once_per_run(tmp_path_factory, "faulty", make)


def _run_faulty(output: Path) -> Faulty:
    """A trial that raises, one that diverges, one that asks for more memory than there is, one that is killed once, one
    whose worker gets SIGTERM, one that is killed every time, one without a fault, and one on whose disk neither worker
    nor driver can write."""
    arms: dict[str, dict[str, Any]] = {
        "raising": {},
        "diverging": {"schedule.lr": 1e12, "schedule.clip": 0, "schedule.steps": 40},
        "hungry": {"detector.channels": 80_000},
        "killed": {**LONG, "seed": 1},
        "terminated": {**LONG, "seed": 5, "schedule.steps": 150, "checkpoint.every": 0},
        "failing": {**LONG, "seed": 2, "schedule.steps": 100_000},
        "good": {"seed": 4},
        # Last: its worker, which goes on to the next trial, can write no file any more.
        "unlucky": {**LONG, "seed": 3, "checkpoint.every": 0},
    }
    trials = {trial.arm: trial for trial in _trials(output, **arms)}
    (trials["raising"].directory / "metrics.json").mkdir(parents=True)
    save = Record.save

    def full(record: Record, directory: Path) -> Path:
        if "unlucky" in str(directory):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(record, directory)

    def keep_killing() -> None:
        # Only what has something to lose: an attempt that is killed as it begins may leave no word.
        if read_heartbeat(trials["failing"].directory).device_seconds > 0:
            _kill_workers_of(trials["failing"])

    def terminate() -> int:
        log = trials["terminated"].directory / "metrics.json"
        training = log.exists() and log.stat().st_size > 0
        return training and _kill_workers_of(trials["terminated"], signal.SIGTERM)

    def fill() -> bool:
        found = _at_work_on(trials["unlucky"])
        for process in found:
            with suppress(psutil.Error):
                process.rlimit(psutil.RLIMIT_FSIZE, (1000, psutil.RLIM_INFINITY))
        return bool(found)

    with (
        pytest.MonkeyPatch.context() as patch,
        _Injected(lambda: unsaved(trials["killed"].directory) > 0 and _kill_workers_of(trials["killed"])) as kill,
        _Injected(keep_killing),
        _Injected(terminate) as terminated,
        _Injected(fill) as filled,
    ):
        patch.setattr(Record, "save", full)
        # One restart shows what three do; each costs seconds of imports.
        patch.setattr(ray_sweep, "RETRIES", 1)
        display, outcome = _sweep([*trials.values()], output, Resources(1, 0, 2))
    return Faulty(trials, display, outcome, {"kill": kill.done, "terminate": terminated.done, "fill": filled.done})


def test_what_ends_one_trial_leaves_the_others_alone(faulty: Faulty) -> None:
    """Every trial is told of once, and has a record of how it ended."""
    names = sorted(t.name for t in faulty.trials.values())
    assert sorted(name for name, _ in faulty.display.records) == names
    assert faulty.outcome.ended == set(names)
    assert faulty.outcome.why == ""
    assert {arm: faulty.record(arm).status for arm in ENDS} == ENDS
    assert "IsADirectoryError" in faulty.record("raising").reason
    assert "memory" in faulty.record("hungry").reason
    assert all("\n" not in faulty.record(arm).reason for arm in ENDS)
    # What failed is to be run again.
    again = {t.arm for t in missing_trials([*faulty.trials.values()])}
    assert again == {"raising", "hungry", "failing", "unlucky"}


def test_a_killed_trial_goes_on_from_its_checkpoint(faulty: Faulty) -> None:
    assert faulty.injected["kill"]
    record = faulty.record("killed")
    assert (record.status, record.attempts, record.steps) == ("finished", 2, LONG["schedule.steps"])
    assert record.device_seconds["lost"] > 0
    assert sum("killed-seed0: its worker died; it goes on from" in x for x in faulty.display.restarts) == 1
    # What an error ended is not told as a death of its worker.
    assert not any("raising" in x for x in faulty.display.restarts)


def test_a_trial_whose_worker_gets_sigterm_loses_no_step(faulty: Faulty) -> None:
    """It writes a checkpoint, the only one that this trial has, before it ends."""
    assert faulty.injected["terminate"]
    record = faulty.record("terminated")
    assert (record.status, record.attempts, record.steps) == ("finished", 2, 150)
    assert (
        sum("terminated-seed0: its worker died; it goes on from its check" in x for x in faulty.display.restarts) == 1
    )


def test_a_trial_that_is_killed_every_time_is_given_up(faulty: Faulty) -> None:
    record = faulty.record("failing")
    assert record.status == "failed"
    assert record.reason.startswith("the worker died")
    assert record.device_seconds["lost"] > 0


def test_a_full_disk_loses_no_trial(faulty: Faulty) -> None:
    """Neither the worker nor the driver can write the record; the next sweep has that trial to run."""
    assert faulty.injected["fill"]
    told = dict(faulty.display.records)["unlucky-seed0"]
    assert told.status == "failed"
    assert "File too large" in told.reason
    assert "No space left on device" in told.reason
    assert not (faulty.trials["unlucky"].directory / FILE).exists()


def test_a_budget_ends_a_sweep_with_checkpoints(tmp_path: Path, ray_session: None) -> None:
    """So few GPU-hours that the first report of the first trial is one too many."""
    output = tmp_path / "out"
    arguments = [
        "--grid", "components", *QUICK, "--set", "schedule.steps=150", "--set", "checkpoint.every=25",
        "--set", "threads=1", "--arms", "baseline,LGD", "--cpus", "2", "--output", str(output),
    ]  # fmt: skip
    said = run(*arguments, "--max-gpu-hours", "1e-5", status=3).out
    assert "--max-gpu-hours 1e-05 are used after 0 of 2 trials" in said
    assert "not run: baseline, seed 0 (checkpoint after step " in said
    assert "not run: LGD, seed 0\n" in said
    ended = json.loads((output / "sweep.json").read_text())["ended"]
    assert len(ended["not_run"]) == 2
    assert not list(output.glob(f"trials/*/{FILE}"))
    assert "not run" not in run("--resume", str(output), "--max-time", "10m").out
    assert load(output / "trials" / "baseline-seed0" / FILE).attempts == 2


def test_trials_of_several_workers_are_placed_whole_and_survive_a_killed_worker(
    tmp_path: Path, ray_session: None
) -> None:
    """Two trials of two workers each on two cores: one after the other, never half of each."""
    trials = _trials(tmp_path, long=LONG, short={"schedule.batch": 4})
    with _Injected(lambda: unsaved(trials[0].directory) > 0 and _kill_workers_of(trials[0])) as kill:
        _sweep(trials, tmp_path, Resources(1, 0, 1, workers=2))
    assert kill.done
    records = [load(t.directory / FILE) for t in trials]
    assert [(r.status, r.devices) for r in records] == [("finished", 2)] * 2
    assert [r.attempts for r in records] == [2, 1]
