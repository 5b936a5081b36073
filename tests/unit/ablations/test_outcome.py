"""What a sweep says at its end, and its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from ablations.outcome import finish
from ablations.plan import describe, trials_of
from ablations.search.optuna_search import search_of
from lgd.config.extra_arms import ExtraArms
from lgd.results.record import Record
from lgd.results.sweep_spec import SearchSpec, SweepSpec


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


def test_trials_to_come_are_counted_and_not_the_lines_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here an arm whose steps follow from what another takes has a line, and three seeds."""
    extra = ExtraArms(equal_cost=("longer",))
    spec = describe("components", "nano", arms="baseline,LGD", seeds=3, extra=extra)
    spec.write(tmp_path)
    sweep = trials_of(spec, tmp_path)
    for trial in sweep.trials[:4]:
        named = {"grid": "components", "preset": "nano", "arm": trial.arm, "experiment": trial.experiment}
        Record.model_validate({"status": "finished", **named}).save(trial.directory)
    assert finish(sweep, None, "", "lgd sweep resume DIR", Console(width=400)) == 1
    assert "5 of 9 trials not run; go on with" in capsys.readouterr().out
    assert finish(sweep, None, "--max-time 1s is over", "lgd sweep resume DIR", Console(width=400)) == 3
    assert "--max-time 1s is over after 4 of 9 trials" in capsys.readouterr().out


def test_samples_of_a_search_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = describe("components", "nano", seeds=1, search=SearchSpec(samples=5, objectives=("AP",), early_stop=False))
    spec.write(tmp_path)
    sweep = trials_of(spec, tmp_path)
    search = search_of(spec, tmp_path)
    assert search is not None
    search.study()
    for i, status in enumerate(("failed", "failed", "finished")):
        reason = "" if status == "finished" else "why"
        named = {"grid": "components", "preset": "nano", "arm": f"search-{i:03}", "experiment": search.base}
        record = Record.model_validate({"status": status, "reason": reason, **named})
        record.save(tmp_path / "trials" / f"search-{i:03}")
    assert finish(sweep, search, "", "lgd sweep resume DIR", Console(width=400)) == 1
    said = capsys.readouterr().out
    assert "not run: 2 samples of the search" in said
    assert "2 of 6 trials failed, 3 of 6 trials not run; go on with" in said
    # Others in their place.
    for i in range(3, 7):
        named = {"grid": "components", "preset": "nano", "arm": f"search-{i:03}", "experiment": search.base}
        Record.model_validate({"status": "finished", **named}).save(tmp_path / "trials" / f"search-{i:03}")
    finish(sweep, search, "", "lgd sweep resume DIR", Console(width=400))
    said = capsys.readouterr().out
    assert "trials failed" not in said
    assert "1 of 6 trials not run; go on with" in said


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
