"""What a sweep says at its end, and its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from ablations.outcome import finish
from ablations.plan import describe, trials_of
from lgd.results.record import Record
from lgd.results.sweep_spec import SweepSpec


@pytest.mark.parametrize(("trained", "status", "why"), [(2, 0, ""), (1, 3, "--max-time 1s is over")])
def test_a_budget_that_the_last_trial_used_up_left_nothing_out(
    trained: int, status: int, why: str, tmp_path: Path
) -> None:
    spec = describe("components", "nano", arms="baseline", seeds=2)
    spec.write(tmp_path)
    sweep = trials_of(spec, tmp_path)
    for trial in sweep.trials[:trained]:
        Record(status="finished", grid="components", preset="nano", arm=trial.arm, experiment=trial.experiment).save(
            trial.directory
        )
    assert finish(sweep, None, "--max-time 1s is over", "lgd sweep resume DIR", Console()) == status
    ended = SweepSpec.read(tmp_path).ended
    assert ended is not None
    assert ended.why == why
    assert len(ended.not_run) == 2 - trained


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (("finished", "finished"), []),
        (("finished", "failed"), ["1 of 2 trials failed; go on with: lgd sweep resume DIR"]),
        # Where the disk is full there may be no record.
        (("failed", ""), ["1 of 2 trials failed, 1 of 2 trials not run; go on with: lgd sweep resume DIR"]),
        (
            ("failed", "diverged"),
            [
                "1 of 2 trials failed; go on with: lgd sweep resume DIR",
                "1 of 2 trials diverged, and would again: to train one of them all the same, remove its record.json and"
                " go on with: lgd sweep resume DIR",
            ],
        ),
    ],
)
def test_trials_that_failed_or_diverged_have_a_next_command(
    ended: tuple[str, str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = describe("components", "nano", arms="baseline", seeds=2)
    spec.write(tmp_path)
    sweep = trials_of(spec, tmp_path)
    for trial, status in zip(sweep.trials, ended, strict=True):
        if not status:
            continue
        reason = "" if status == "finished" else "why"
        named = {"grid": "components", "preset": "nano", "arm": trial.arm, "experiment": trial.experiment}
        Record.model_validate({"status": status, "reason": reason, **named}).save(trial.directory)
    assert finish(sweep, None, "", "lgd sweep resume DIR", Console(width=400)) == bool(told)
    assert [x for x in capsys.readouterr().out.splitlines() if "go on with" in x] == told
