"""The fault drill: its checks find what is wrong, its hooks fit the code, and the quickest faults are survived."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ablations.command import main
from ablations.drill import hooks
from ablations.drill.checks import (
    KILLED_FLOOR_S,
    Failure,
    allowance,
    check_cost,
    check_left,
    check_message,
    check_records,
    check_steps,
    check_trace,
)
from ablations.drill.commands import SWEEP, TRIALS, Sandbox
from ablations.drill.drill import Fault, Result, run_drill, run_reference
from ablations.drill.hooks import Attempt, Moment, attempts
from ablations.drill.registry import FAULTS
from ablations.drill.table import Row, markdown, read, source, write
from lgd.distributed.ray_train import cores
from lgd.errors import InputError
from lgd.results.record import FILE, Record, load
from lgd.training.run import failed_record
from tests.helpers import quick_experiment

QUICK = "kill-worker-checkpoint"
"""A fault that other tests do not inject, or not at that point: drilled once in every run of the tests."""


@pytest.fixture
def sweeps(tmp_path: Path) -> tuple[Path, Path]:
    """Results directories of an undisturbed sweep, and of one to be doctored, which is the same."""
    reference, output = tmp_path / "reference", tmp_path / "output"
    for name in TRIALS:
        directory = reference / "trials" / name
        directory.mkdir(parents=True)
        record = failed_record(quick_experiment(), "", arm=name.removesuffix("-seed0"))
        changes = {"status": "finished", "reason": "", "steps": 2, "losses": {"total_loss": [(1, 0.5), (2, 0.25)]}}
        record.model_copy(update={**changes, "device_seconds": {"training": 10.0}}).save(directory)
        lines = [{"iteration": i, "total_loss": 0.5 / (i + 1)} for i in range(2)]
        (directory / "metrics.json").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
        torch.save({"model": {"weight": torch.ones(2)}}, directory / "student.pth")
    (reference / "records.csv").write_text("arm,seed\nbaseline,0\nLGD,0\n")
    (reference / "lock").touch()
    shutil.copytree(reference, output)
    return output, reference


ATTEMPTS = [Attempt("baseline-seed0", 10.0, True), Attempt("lgd-seed0", 10.1, True)]


def _all_checks(output: Path, reference: Path) -> list[Failure]:
    temporary = output.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    return [
        *check_records(output, reference),
        *check_steps(output, reference),
        *check_trace(output, reference),
        *check_cost(output, ATTEMPTS),
        *check_left(output, reference, temporary, []),
    ]


def test_what_is_as_undisturbed_passes(sweeps: tuple[Path, Path]) -> None:
    assert _all_checks(*sweeps) == []


def _change(update: Callable[[Record], dict[str, object]]) -> Callable[[Path], None]:
    def act(trial: Path) -> None:
        record = load(trial / FILE)
        record.model_copy(update=update(record)).save(trial)

    return act


def _append(name: str, text: str) -> Callable[[Path], None]:
    def act(trial: Path) -> None:
        path = trial / name
        path.write_text(path.read_text() + text if path.exists() else text)

    return act


DOCTORED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "record gone": (lambda trial: (trial / FILE).unlink(), "one record", "lgd-seed0"),
    "record cut off": (lambda trial: os.truncate(trial / FILE, 100), "one record", "not a record"),
    "failed": (_change(lambda _: {"status": "failed", "reason": "why"}), "one record", "failed: why"),
    "second row": (lambda trial: _append("../../records.csv", "LGD,0\n")(trial), "one record", "records.csv"),
    "step more": (_change(lambda _: {"steps": 3}), "steps", "3, not 2"),
    "step logged twice": (_append("metrics.json", '{"iteration": 1, "total_loss": 0.25}\n'), "steps", "3 entries"),
    "other loss": (_change(lambda x: {"losses": {"total_loss": [(1, 0.5), (2, 0.2500001)]}}), "trace", "0.2500001"),
    "other weight": (
        lambda trial: torch.save({"model": {"weight": torch.tensor([1.0, 1.0000001])}}, trial / "student.pth"),
        "trace",
        "student.pth differ: weight",
    ),
    "lost work left out": (_change(lambda _: {"device_seconds": {"training": 9.0}}), "cost", "9.00 device-seconds"),
    "counted twice": (_change(lambda _: {"device_seconds": {"training": 10.0, "lost": 1.0}}), "cost", "11.00"),
    "attempts": (_change(lambda _: {"attempts": 2}), "cost", "2 attempts in the record, 1 seen"),
    "temporary file": (_append(".record.lgd-tmp-a1b2c3d4.json", ""), "nothing left", ".record.lgd-tmp-a1b2c3d4.json"),
    "checkpoint": (_append("step-00000005.pth", ""), "nothing left", "step-00000005.pth"),
    "stop file": (lambda trial: _append("../../stop", "")(trial), "nothing left", "stop"),
    "library's file": (lambda trial: (trial.parents[2] / "temporary" / "x").mkdir(parents=True), "nothing left", "x"),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_what_is_wrong_fails(name: str, sweeps: tuple[Path, Path]) -> None:
    """Each check names itself and what it saw."""
    output, reference = sweeps
    doctor, check, evidence = DOCTORED[name]
    doctor(output / "trials" / "lgd-seed0")
    found = _all_checks(output, reference)
    assert any(x.check == check and evidence in x.evidence for x in found), found


def test_processes_and_locks_that_are_left_fail(sweeps: tuple[Path, Path], tmp_path: Path) -> None:
    output, reference = sweeps
    with FileLock(output / "lock"):
        found = check_left(output, reference, tmp_path / "reference" / "trials" / "lgd-seed0", ["python worker"])
    said = " ".join(map(str, found))
    assert "a process: python worker" in said
    assert "lock is held" in said


def test_a_killed_attempt_may_lack_one_heartbeat() -> None:
    assert allowance(1000.0, 0) == pytest.approx(20.0)
    assert allowance(1.0, 2) == pytest.approx(0.25 + 2 * KILLED_FLOOR_S)


@pytest.mark.parametrize(
    ("said", "status", "evidence"),
    [
        ("SIGTERM came; go on with: python x", 3, ""),
        ("SIGTERM came; go on with: python x", 0, "exit status 0"),
        ("Traceback (most recent call last):\nSIGTERM came; go on with: python x", 3, "a traceback"),
        ("go on with: python x", 3, "no line like"),
        ("SIGTERM came", 3, "no next command"),
    ],
)
def test_a_message_is_checked(said: str, status: int, evidence: str) -> None:
    found = check_message(said, status, [3], "^SIGTERM came", needs="go on with: ")
    assert evidence in " ".join(x.evidence for x in found)
    assert bool(found) == bool(evidence)


@pytest.mark.slow
def test_the_hooks_fit_the_code_that_they_patch() -> None:
    """Every place of a fault is reached in a real training, whose seconds are measured; a NaN is injected."""
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from lgd.training import run\nfrom tests.helpers import quick_experiment\n"
        "record = run.run(quick_experiment(**{'checkpoint.every': 2}), Path(sys.argv[1]) / 'trial')\n"
        "print(record.status, sum(record.device_seconds.values()))\n"
    )
    assert {importlib.import_module(name).__name__ for name in hooks.PATCHES} == set(hooks.PATCHES)
    with Sandbox(Path("unused")) as place:
        Moment("step", "trial", 3, "nan").write(place.control)
        done = subprocess.run(
            [sys.executable, "-c", code, str(place.control)],
            env=place.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        status, seconds = done.stdout.split()
        assert status == "diverged"
        assert json.loads((place.control / hooks.REACHED).read_text())["step"] == 3
        (attempt,) = attempts(place.control)
        assert attempt.ended
        assert attempt.seconds == pytest.approx(float(seconds), abs=0.25)


def test_processes_of_a_command_are_found_and_ended(tmp_path: Path) -> None:
    with Sandbox(tmp_path) as place:
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=place.environment)
        assert [x.pid for x in place.processes()] == [sleeper.pid]
    assert sleeper.wait(10) == -9
    assert not place.control.exists()


def _cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_table_counts(tmp_path: Path) -> None:
    passed = Result("nan", 0, "lgd-seed0, step 3", (), 20.0)
    failed = replace(passed, repeat=1, failures=(Failure("cost", "11 and 10"), Failure("cost", "3 and 2")))
    table = markdown([passed, failed])
    assert ["nan", "1 of 2", "20", "cost (1)"] in _cells(table)
    about = source("lgd drill --faults nan")
    drilled = [Row(passed, 0, about), Row(failed, 0, about)]
    text, rows = write(drilled, tmp_path)
    assert "- nan, repeat 1 (lgd-seed0, step 3): cost: 11 and 10" in text.read_text()
    assert all(f"- {name}: " in text.read_text() for name in ("command", "commit", "cpu", "torch"))
    assert read(rows) == drilled
    with rows.open() as file:
        first, second = csv.DictReader(file)
    assert (first["passed"], second["passed"]) == ("True", "False")
    assert first["command"] == "lgd drill --faults nan"


def test_a_drill_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drilled: list[tuple[str, int]] = []
    failing = {("moved", 1)}

    def run(fault: Fault, repeat: int, *_: object) -> Result:
        if len(drilled) == 3:
            raise KeyboardInterrupt
        drilled.append((fault.name, repeat))
        failures = (Failure("cost", "3; and 2"),) if (fault.name, repeat) in failing else ()
        return Result(fault.name, repeat, "", failures, 1.0)

    monkeypatch.setattr("ablations.drill.drill.run_drill", run)
    monkeypatch.setattr("ablations.drill.drill.run_reference", lambda directory, _: directory)
    monkeypatch.setenv("LGD_COMMIT", "one")
    command = ["drill", "--faults", "moved,two-commands", "--repeats", "2"]
    assert main([*command, "--output", str(tmp_path)]) == 130
    assert drilled == [("moved", 0), ("two-commands", 0), ("moved", 1)]
    assert main([*command, "--output", str(tmp_path)]) == 2
    assert "there is a drill already: --resume goes on with it" in capsys.readouterr().err

    drilled.clear()
    assert main([*command, "--resume", str(tmp_path)]) == 1
    assert drilled == [("two-commands", 1)]
    # What failed is mended.
    drilled.clear()
    failing.clear()
    monkeypatch.setenv("LGD_COMMIT", "two")
    assert main([*command, "--resume", str(tmp_path)]) == 0
    assert drilled == [("moved", 1)]
    assert any(row[:2] == ["**all**", "**4 of 4**"] for row in _cells(capsys.readouterr().out))
    assert main(["drill", "--table", str(tmp_path / "drill.csv")]) == 0
    assert "- commit: one, two" in capsys.readouterr().out

    assert main([*command, "--resume", str(tmp_path), "--bucket", "s3://b/drill"]) == 2
    assert "its drills were not in a bucket" in capsys.readouterr().err
    for content in ("", "fault\n", "fault\nmoved\n"):
        (tmp_path / "drill.csv").write_text(content)
        for arguments in ([*command, "--resume", str(tmp_path)], ["drill", "--table", str(tmp_path / "drill.csv")]):
            assert main(arguments) == 2
            assert "drill.csv: not the table of a drill" in capsys.readouterr().err


def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--faults", "flood"], "no such fault"), (["--repeats", "0"], "at least 1")):
        assert main(["drill", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert main(["drill", "--list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(FAULTS)


@pytest.mark.slow
def test_a_quick_fault_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``lgd drill --repeats 10`` is the nightly form of all, with two trials side by side."""
    if cores() >= 2:
        # One trial after the other in one process: each takes seconds to import torch.
        monkeypatch.setattr("ablations.drill.drill.SWEEP", (*SWEEP, "--cpus", "2"))
    reference = run_reference(tmp_path / "undisturbed")
    assert run_drill(FAULTS[QUICK], 0, 0, reference, tmp_path / QUICK).failures == ()


def test_an_undisturbed_sweep_that_fails_is_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.drill.drill.SWEEP", ("--grid", "nothing"))
    with pytest.raises(InputError, match="the undisturbed sweep fails already: message: exit status 2"):
        run_reference(tmp_path)
