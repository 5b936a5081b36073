"""Steps that give one arm as much training time as another took: measured by the sweep itself, typed in nowhere.

An arm that is matched to another trains for its reference's steps times that one's cost: its device-seconds of
training (lgd/meter.py) over the reference's, both over the seeds that both finished; at least one step more than that.
A sweep keeps the steps once they are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ablations.grids import STEPS, Arm, Grid, plan
from analysis.records import by_seed, finished, training_device_seconds
from analysis.statistics import paired_ratio
from lgd.experiment import Experiment
from lgd.record import earlier


def settled(
    grid: Grid, base: Experiment, seeds: int, overrides: Sequence[str], output: Path, known: Mapping[str, int]
) -> dict[str, int]:
    """Steps by matched arm: the ``known`` ones as they are, and those that the records in ``output`` tell.

    That is when both trainings have ended for each of the seeds, and one seed finished in both.
    """
    steps, arms = dict(known), {arm.name: arm for arm in grid.arms}
    for arm in grid.arms:
        if not arm.matched or arm.name in steps:
            continue
        trained = [
            plan(replace(grid, arms=(arms[name],)), base, seeds, overrides, output)
            for name in (arm.matched, grid.references[arm.name])
        ]
        records = [earlier(trial.directory, trial.experiment) for trials in trained for trial in trials]
        there = [record for record in records if record is not None]
        ratio = paired_ratio(*(by_seed(finished(there, trials[0].arm), training_device_seconds) for trials in trained))
        if len(there) == len(records) and ratio is not None:
            own = trained[1][0].experiment.schedule.steps
            # Where both cost the same it would be the reference once more, which no sweep trains twice.
            steps[arm.name] = max(own + 1, round(own * ratio.value))
    return steps


def lasting(arm: Arm, steps: Mapping[str, int]) -> Arm:
    """``arm`` with the steps that are known for it."""
    return replace(arm, changes={**arm.changes, STEPS: steps[arm.name]}) if arm.name in steps else arm
