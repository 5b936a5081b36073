"""Steps that give one arm as much training time as another took: measured by the sweep itself, typed in nowhere.

An arm with ``time_budget_from`` trains for the steps of its arm ``steps_from``, times what ``time_budget_from`` cost
against that: in device-seconds of training (lgd/results/cost_meter.py), the median over the seeds that both finished.
The budget holds all training steps of the frozen teacher that ``time_budget_from`` needs; what ``steps_from`` needs of
that is counted where the arm pays for its teacher (grid ``methods-by-cost``), else not, or no time would be left. A
baseline gets at least one step more than it had. A sweep keeps the steps once they are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ablations.damaged import damage
from lgd.config.arms import Arm, Grid
from lgd.config.experiment import STEPS, Experiment
from lgd.config.grids import plan
from lgd.training.resume import existing_record


def steps_for_equal_time(
    grid: Grid, base: Experiment, seeds: int, overrides: Sequence[str], output: Path, known: Mapping[str, int]
) -> dict[str, int]:
    """Steps by arm with a time budget: the ``known`` ones as they are, and those that the records in ``output`` tell.

    That is when both trainings have ended for each of the seeds, and one seed finished in both.
    """
    steps, arms = dict(known), {arm.name: arm for arm in grid.arms}
    for arm in grid.arms:
        if not arm.time_budget_from or arm.name in steps:
            continue
        trained = [
            plan(replace(grid, arms=(arms[name],)), base, seeds, overrides, output)
            for name in (arm.time_budget_from, arm.steps_from)
        ]
        if any(damage(trial.directory) for trials in trained for trial in trials):
            continue
        records = [existing_record(trial.directory, trial.experiment) for trials in trained for trial in trials]
        there = [record for record in records if record is not None]
        if len(there) < len(records):
            continue
        # Here, not at the top: they load pandas and SciPy, and few grids have such arms.
        from analysis.costs import on_like_hardware
        from analysis.grid_runs import shown_names
        from analysis.load import by_seed, cost_seconds, finished, teacher_seconds, training_device_seconds
        from analysis.stats.differences import paired_ratio

        runs = [finished(there, shown_names([trials[0].arm], there)[0]) for trials in trained]
        # Seconds of unlike hardware do not compare; where there is nothing else, they are the best guess.
        alike = on_like_hardware(*runs)
        budget, own_cost = alike if all(alike) else runs
        before = by_seed(own_cost, teacher_seconds) if arm.pays_for_teacher else {}
        left = {seed: seconds - before.get(seed, 0.0) for seed, seconds in by_seed(budget, cost_seconds).items()}
        ratio = paired_ratio(left, by_seed(own_cost, training_device_seconds))
        if ratio is not None:
            schedule = trained[1][0].experiment.schedule
            own, wanted = schedule.steps, round(schedule.steps * ratio.value)
            if arm.steps_from == grid.references[arm.name]:
                wanted = max(wanted, own)
            wanted = max(wanted, schedule.resolved_warmup_steps + 1)
            # Where both cost the same it would be the same training once more, which no sweep trains twice.
            steps[arm.name] = wanted + (wanted == own)
    return steps


def with_steps(arm: Arm, steps: Mapping[str, int]) -> Arm:
    """``arm`` with the steps that are known for it."""
    return replace(arm, changes={**arm.changes, STEPS: steps[arm.name]}) if arm.name in steps else arm
