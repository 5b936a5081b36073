"""What a drill checks of a command's last words and of a search. Without a sweep: what commands said is given."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ablations.drill import damages
from ablations.drill.commands import EVALUATE, STEPS, TRIALS, Done
from ablations.drill.damages import WRITTEN as WRITTEN_FILES
from ablations.drill.damages import FullDisk, FullDiskAtFile
from ablations.drill.drill import Drill
from ablations.drill.faults import NotANumber, SignalTwice, StartUp
from ablations.drill.hooks import Attempt, Moment
from lgd.results.record import FILE
from lgd.results.sweep_spec import SWEEP_FILE
from lgd.training.run import failed_record
from tests.helpers import quick_experiment

WRITTEN = Done(0, "written: table.md")
GO_ON = "go on with: python ablations/run.py --resume out --cpus 1"


class _Place:
    """Commands that say what is given, one after the other; ``asked`` has their arguments."""

    bucket = None
    results = "out"

    def __init__(self, output: Path, said: Sequence[Done]) -> None:
        self.output, self.control, self.temporary = output, output.parent / "control", output.parent / "temporary"
        for folder in (self.control / "spent", self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        self._said, self.asked = iter(said), list[list[str]]()

    def start(self, arguments: list[str], *_: object) -> Any:
        self.asked.append(arguments)
        done = next(self._said)
        nothing = dict.fromkeys(("wait_for", "wait_for_moment", "send", "go"), lambda *_: None)
        return SimpleNamespace(wait=lambda: done, **nothing)

    def run(self, arguments: list[str]) -> Done:
        done: Done = self.start(arguments).wait()
        return done

    def exists(self, name: str) -> bool:
        return (self.output / name).exists()

    def left_processes(self) -> list[str]:
        return []

    @contextlib.contextmanager
    def files(self) -> Iterator[Path]:
        yield self.output


def _drill(tmp_path: Path, *said: Done) -> tuple[Drill, _Place]:
    place = _Place(tmp_path / "out", said)
    place.output.mkdir(exist_ok=True)
    drill = Drill(cast(Any, place), tmp_path / "reference" / "out", random.Random(0))
    return drill, place


TRACEBACK = "interrupted before a trial began\nTraceback (most recent call last):\nKeyboardInterrupt"


@pytest.mark.parametrize(
    ("number", "done", "evidence"),
    [
        (signal.SIGTERM, Done(-signal.SIGTERM, ""), ""),
        (signal.SIGTERM, Done(-signal.SIGTERM, "starting Ray ..."), "exit status -15"),
        (signal.SIGTERM, Done(signal.SIGTERM, ""), "exit status 15"),
        (signal.SIGTERM, Done(130, "interrupted before a trial began"), ""),
        (signal.SIGTERM, Done(130, f"starting Ray ...\ninterrupted; {GO_ON}"), ""),
        (signal.SIGTERM, Done(3, f"SIGTERM came after 0 of 2 trials; {GO_ON}"), ""),
        (signal.SIGTERM, Done(3, "SIGTERM came after 0 of 2 trials"), "no line like"),
        (signal.SIGTERM, Done(130, TRACEBACK), "a traceback"),
        (signal.SIGINT, Done(130, "interrupted before a trial began"), ""),
        (signal.SIGINT, Done(-signal.SIGTERM, ""), "exit status -15"),
    ],
)
def test_a_signal_at_the_start_is_answered_in_a_line(
    number: signal.Signals, done: Done, evidence: str, tmp_path: Path
) -> None:
    drill, _ = _drill(tmp_path, done, WRITTEN)
    StartUp(number).inject(drill)
    found = " ".join(map(str, drill.failures))
    assert evidence in found
    assert bool(drill.failures) == bool(evidence), found


@pytest.mark.parametrize("told", [True, False])
def test_after_a_full_disk_the_sweep_goes_on_as_it_was_told(
    told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damages, "_small_disk", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(damages, "_filled", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Drill, "check", lambda _: None)
    full = "out/table.md cannot be written: No space left on device (0.0 MiB free)"
    drill, place = _drill(tmp_path, Done(2, f"{full}; {GO_ON}" if told else full), WRITTEN)
    FullDisk("record").inject(drill)
    found = " ".join(map(str, drill.failures))
    assert bool(drill.failures) != told, found
    assert told or "no next command (go on with: )" in found
    assert place.asked[1] == ["--resume", "out", "--cpus", "1"]


AGAIN = "no trial was begun: make space there and give the same command again"


@pytest.mark.parametrize(("begun", "said", "good"), [
    (True, GO_ON, True), (True, AGAIN, False), (False, AGAIN, True), (False, "", False),
])  # fmt: skip
def test_the_disk_is_full_at_every_file_of_a_sweep_also_the_first(
    begun: bool, said: str, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damages, "_small_disk", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(damages, "_filled", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Drill, "check", lambda _: None)
    drill, place = _drill(tmp_path, Done(2, f"x cannot be written: No space left on device; {said}"), WRITTEN)
    if begun:
        (place.output / SWEEP_FILE).touch()
    FullDiskAtFile().inject(drill)
    assert bool(drill.failures) != good, drill.failures
    assert place.asked[1] == (["--resume", "out", "--cpus", "1"] if begun else drill.arguments)
    assert drill.moment.split(", ")[0] in WRITTEN_FILES


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_come_at_every_point(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Moment] = []
    monkeypatch.setattr(SignalTwice, "send", lambda _, drill, moment: seen.append(moment))
    for seed in range(60):
        drill, _ = _drill(tmp_path)
        drill.rng = random.Random(seed)
        SignalTwice(number).inject(drill)
    assert {x.point for x in seen} == {"set-up", "step", "evaluation", "checkpoint"}
    assert {x.step for x in seen if x.point == "evaluation"} == {EVALUATE, STEPS}


@pytest.mark.parametrize("told", [True, False])
def test_a_trial_that_diverged_has_a_next_command(told: bool, tmp_path: Path) -> None:
    diverged = "[1/2] LGD, seed 0: diverged: NaN"
    first = f"{diverged}\n1 of 2 trials diverged: remove its {FILE} and {GO_ON}" if told else diverged
    drill, place = _drill(tmp_path, Done(1, first), Done(1, "2 trials, 0 to run"), WRITTEN)
    for name in TRIALS:
        (place.output / "trials" / name).mkdir(parents=True)
        (place.output / "trials" / name / FILE).touch()
    NotANumber().inject(drill)
    found = " ".join(map(str, drill.failures))
    assert bool(drill.failures) != told, found
    assert told or "no next command (remove its record.json and go on with: )" in found


# A search


SAMPLES = ("search-0", "search-1")


def _trial(output: Path, name: str, iterations: Sequence[int] = range(STEPS), **changes: Any) -> None:
    directory = output / "trials" / name
    directory.mkdir(parents=True)
    record = failed_record(quick_experiment(), "", arm=name)
    update = {"status": "finished", "reason": "", "steps": STEPS, "device_seconds": {"training": 10.0}, **changes}
    record.model_copy(update=update).save(directory)
    (directory / "metrics.json").write_text("".join(f"{json.dumps({'iteration': i})}\n" for i in iterations))
    torch.save({"model": {"weight": torch.ones(2)}}, directory / "student.pth")


@pytest.fixture
def search(tmp_path: Path) -> Drill:
    """A reference, and a search beside its first trial."""
    drill, place = _drill(tmp_path)
    for name in TRIALS:
        _trial(drill.reference, name)
    shutil.copytree(drill.reference / "trials" / TRIALS[0], place.output / "trials" / TRIALS[0])
    for name in SAMPLES:
        # What was sampled has another student.
        _trial(place.output, name)
        torch.save({"model": {"weight": torch.zeros(3)}}, place.output / "trials" / name / "student.pth")
    (place.output / "study.db").touch()
    drill.attempts_before = [Attempt(name, 10.0, True) for name in (TRIALS[0], *SAMPLES)]
    return drill


def test_a_search_that_lost_nothing_passes(search: Drill) -> None:
    search.check_search(samples=2)
    assert search.failures == []
    assert search.checked


def _diverge(drill: Drill) -> None:
    shutil.rmtree(drill.output / "trials" / SAMPLES[1])
    _trial(drill.output, SAMPLES[1], range(3), status="diverged", reason="NaN", steps=3)


def test_a_sample_that_diverged_has_fewer_steps(search: Drill) -> None:
    _diverge(search)
    search.check_search(samples=2)
    assert search.failures == []


def _log_twice(drill: Drill) -> None:
    with (drill.output / "trials" / SAMPLES[1] / "metrics.json").open("a") as file:
        file.write(f"{json.dumps({'iteration': STEPS - 1})}\n")


def _leave(name: str) -> Callable[[Drill], None]:
    def leave(drill: Drill) -> None:
        (drill.output / name).parent.mkdir(parents=True, exist_ok=True)
        (drill.output / name).touch()

    return leave


def _other_baseline(drill: Drill) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, drill.output / "trials" / TRIALS[0] / "student.pth")


@pytest.mark.parametrize(
    ("harm", "check", "evidence"),
    [
        (_log_twice, "steps", "search-1: iterations in metrics.json"),
        (_other_baseline, "trace", "baseline-seed0: weights in student.pth"),
        (_leave("trials/search-0/checkpoints/step-00000005.pth"), "nothing left", "step-00000005.pth"),
        (_leave("trials/search-0/meter.json"), "nothing left", "meter.json"),
        (_leave(".study.lgd-tmp-a1b2c3d4.db"), "nothing left", ".study.lgd-tmp-a1b2c3d4.db"),
        (_leave("stop"), "nothing left", "stop"),
        (_leave("../temporary/x"), "nothing left", "in the temporary directory: x"),
        (lambda drill: shutil.rmtree(drill.output / "trials" / SAMPLES[0]), "one record", "for 2 samples"),
    ],
)
def test_what_a_search_lost_or_left_is_found(
    harm: Callable[[Drill], None], check: str, evidence: str, search: Drill
) -> None:
    harm(search)
    search.check_search(samples=2)
    assert any(x.check == check and evidence in x.evidence for x in search.failures), search.failures
