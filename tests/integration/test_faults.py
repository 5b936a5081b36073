"""Faults, each injected into a real sweep: no trial is lost or counted twice, and nothing is left running."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from ablations.ray_sweep import Names, Outcome, Resources, done, run_sweep
from ablations.run import main
from lgd.config.grids import Trial
from lgd.distributed import ray_train
from lgd.results import provenance
from lgd.results.cost_meter import read_heartbeat
from lgd.results.record import FILE, Record, load
from tests.helpers import quick_experiment, unsaved, wait_until
from tests.integration.test_sweep_command import QUICK

ROOT = Path(__file__).parents[2]
NAMES = Names("components", "tiny")
LONG: dict[str, Any] = {"schedule.steps": 300, "checkpoint.every": 50, "method.name": "baseline", "schedule.batch": 4}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_strays")]


class _Display:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Record]] = []
        self.steps: dict[str, int] = {}

    def add(self, trial: Trial) -> None: ...

    def progress(self, name: str, progress: dict[str, Any]) -> None:
        self.steps[name] = progress["step"]

    def ended(self, name: str, record: Record) -> None:
        self.records.append((name, record))


def _trials(output: Path, **arms: dict[str, Any]) -> list[Trial]:
    return [
        Trial(arm, quick_experiment(**changes), output / "trials" / f"{arm}-seed0") for arm, changes in arms.items()
    ]


def _sweep(trials: list[Trial], output: Path, **options: Any) -> tuple[_Display, Outcome]:
    display = _Display()
    resources = options.pop("resources", Resources(1, 0, 2))
    with ray_train.cluster(None, cpus=2):
        outcome = run_sweep(trials, NAMES, output, resources, display, **options)
    return display, outcome


def _at_work_on(trial: Trial) -> list[psutil.Process]:
    """The processes that have a file of a trial open, such as the one that it writes its losses to."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(Path(x.path).is_relative_to(trial.directory) for x in process.open_files()):
                found.append(process)
    return found


def _kill_workers_of(trial: Trial) -> int:
    """How many there were."""
    found = _at_work_on(trial)
    for process in found:
        with suppress(psutil.Error):
            process.kill()
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


def test_what_ends_one_trial_leaves_the_others_alone(tmp_path: Path) -> None:
    """A trial that raises, one that diverges, and one that asks for more memory than there is."""
    trials = _trials(
        tmp_path,
        raising={},
        diverging={"schedule.lr": 1e12, "schedule.clip": 0, "schedule.steps": 40},
        hungry={"detector.channels": 80_000},
        good={"seed": 1},
    )
    (trials[0].directory / "metrics.json").mkdir(parents=True)
    display, outcome = _sweep(trials, tmp_path)
    assert sorted(name for name, _ in display.records) == sorted(t.name for t in trials)
    assert outcome.ended == {t.name for t in trials}
    assert outcome.why == ""
    records = {t.arm: load(t.directory / FILE) for t in trials}
    assert {arm: r.status for arm, r in records.items()} == {
        "raising": "failed",
        "diverging": "diverged",
        "hungry": "failed",
        "good": "finished",
    }
    assert "IsADirectoryError" in records["raising"].reason
    assert "memory" in records["hungry"].reason
    assert all("\n" not in r.reason for r in records.values())
    # What raised is told once, and costs what it cost.
    assert len(display.records) == len(trials)
    assert [done(t) is None for t in trials] == [True, False, True, False]


def test_a_killed_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    trials = _trials(tmp_path, long=LONG, short={})
    with _Injected(lambda: unsaved(trials[0].directory) > 0 and _kill_workers_of(trials[0])) as kill:
        display, _ = _sweep(trials, tmp_path)
    assert kill.done
    assert sorted(name for name, _ in display.records) == sorted(t.name for t in trials)
    record = load(trials[0].directory / FILE)
    assert (record.status, record.attempts, record.steps) == ("finished", 2, LONG["schedule.steps"])
    assert record.device_seconds["lost"] > 0
    assert load(trials[1].directory / FILE).status == "finished"


def test_a_trial_that_is_killed_every_time_is_given_up(tmp_path: Path) -> None:
    trials = _trials(tmp_path, long={**LONG, "schedule.steps": 100_000}, short={})

    def keep_killing() -> None:
        # Only what has something to lose: an attempt that is killed as it begins may leave no word.
        if read_heartbeat(trials[0].directory).device_seconds > 0:
            _kill_workers_of(trials[0])

    with _Injected(keep_killing):
        display, _ = _sweep(trials, tmp_path)
    assert sorted(name for name, _ in display.records) == sorted(t.name for t in trials)
    record = load(trials[0].directory / FILE)
    assert record.status == "failed"
    assert record.reason.startswith("the worker died")
    assert record.device_seconds["lost"] > 0
    assert load(trials[1].directory / FILE).status == "finished"


def test_a_full_disk_loses_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the worker nor the driver can write the record; the next sweep has that trial to run, and no other."""
    trials = _trials(tmp_path, unlucky={**LONG, "checkpoint.every": 0}, good={"seed": 1})

    def fill() -> bool:
        found = _at_work_on(trials[0])
        for process in found:
            process.rlimit(psutil.RLIMIT_FSIZE, (1000, psutil.RLIM_INFINITY))
        return bool(found)

    save = Record.save

    def full(record: Record, directory: Path) -> Path:
        if "unlucky" in str(directory):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(record, directory)

    monkeypatch.setattr(Record, "save", full)
    with _Injected(fill) as filled:
        display, outcome = _sweep(trials, tmp_path)
    assert filled.done
    told = dict(display.records)
    assert sorted(told) == sorted(t.name for t in trials)
    assert len(display.records) == 2
    assert told["unlucky-seed0"].status == "failed"
    assert "File too large" in told["unlucky-seed0"].reason
    assert "No space left on device" in told["unlucky-seed0"].reason
    assert outcome.ended == set(told)
    assert not (trials[0].directory / FILE).exists()
    assert [done(t) is None for t in trials] == [True, False]
    assert load(trials[1].directory / FILE).status == "finished"


@pytest.fixture
def long_grid(tmp_path: Path) -> tuple[list[str], Path]:
    """A command whose second arm takes long enough to be interrupted in, with frequent checkpoints."""
    return [
        sys.executable, str(ROOT / "ablations" / "run.py"), "--grid", "components", *QUICK,
        "--set", "schedule.steps=250", "--set", "checkpoint.every=25", "--set", "threads=1",
        "--arms", "baseline,LGD", "--cpus", "2", "--output", str(tmp_path / "out"),
    ], tmp_path / "out"  # fmt: skip


def test_a_killed_driver_leaves_a_sweep_that_goes_on(long_grid: tuple[list[str], Path]) -> None:
    """One trial after the other: the first is finished, the second has a checkpoint when the driver is killed."""
    command, output = long_grid
    first, second = (output / "trials" / f"{arm}-seed0" for arm in ("baseline", "lgd"))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: unsaved(second) > 0 or process.poll() is not None)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.kill()
        process.wait()
    kept = (first / FILE).read_bytes()
    assert not (second / FILE).exists()
    resumed = subprocess.run(
        [sys.executable, str(ROOT / "ablations" / "run.py"), "--resume", str(output), "--cpus", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "2 trials, 1 to run" in resumed.stdout
    assert (first / FILE).read_bytes() == kept
    record = load(second / FILE)
    assert (record.status, record.attempts, record.steps) == ("finished", 2, 250)


def test_a_budget_ends_a_sweep_with_checkpoints(long_grid: tuple[list[str], Path]) -> None:
    """So few GPU-hours that the first word of the first trial is one too many."""
    command, output = long_grid
    said = subprocess.run([*command, "--max-gpu-hours", "1e-5"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 3, said.stdout + said.stderr
    assert "--max-gpu-hours 1e-05 are used after 0 of 2 trials" in said.stdout
    assert "not run: baseline, seed 0 (checkpoint after step " in said.stdout
    assert "not run: LGD, seed 0\n" in said.stdout
    ended = json.loads((output / "sweep.json").read_text())["ended"]
    assert len(ended["not_run"]) == 2
    assert not list(output.glob(f"trials/*/{FILE}"))
    resumed = subprocess.run(
        [sys.executable, str(ROOT / "ablations" / "run.py"), "--resume", str(output), "--max-time", "10m"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "not run" not in resumed.stdout
    assert load(output / "trials" / "baseline-seed0" / FILE).attempts == 2


def test_trials_of_several_workers_are_placed_whole_and_survive_a_killed_worker(tmp_path: Path) -> None:
    """Two trials of two workers each on two cores: one after the other, never half of each."""
    trials = _trials(tmp_path, long=LONG, short={"schedule.batch": 4})
    with _Injected(lambda: unsaved(trials[0].directory) > 0 and _kill_workers_of(trials[0])) as kill:
        _sweep(trials, tmp_path, resources=Resources(1, 0, 1, workers=2))
    assert kill.done
    records = [load(t.directory / FILE) for t in trials]
    assert [(r.status, r.devices) for r in records] == [("finished", 2)] * 2
    assert [r.attempts for r in records] == [2, 1]


def test_a_directory_of_other_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--grid", "components", *QUICK, "--arms", "baseline", "--output", str(tmp_path)]
    assert main([*arguments, "--max-time", "1h"]) == 0
    path = tmp_path / "sweep.json"
    sweep = json.loads(path.read_text())
    sweep["code"]["versions"]["torch"] = "1.0"
    sweep["code"]["files"]["lgd/methods/label_guided/distance.py"] = "another"
    path.write_text(json.dumps(sweep))
    capsys.readouterr()
    assert main([*arguments, "--seeds", "2"]) == 2
    said = capsys.readouterr().err
    assert f"torch 1.0 there and {provenance.versions()['torch']} here" in said
    assert "changed: lgd/methods/label_guided/distance.py" in said
    assert said.count("\n") == 1
    assert main([*arguments, "--seeds", "2", "--accept-other-code", "--dry-run"]) == 0


def test_two_sweeps_do_not_share_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(tmp_path / "lock"):
        assert main(["--grid", "components", *QUICK, "--arms", "baseline", "--output", str(tmp_path)]) == 2
    assert "another sweep is at work there" in capsys.readouterr().err
