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
