"""Records of a search's trials that their driver writes: of those that were ended early, and of those without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ablations.damaged import SET_ASIDE
from ablations.remote_output import try_to_publish
from ablations.search.search_space import proposed_trial
from ablations.search.tell import evaluations_so_far
from ablations.trial_config import TrialConfig
from lgd.config.experiment import Experiment, parse
from lgd.results.cost_meter import read_heartbeat
from lgd.results.record import FILE, Record
from lgd.storage import outputs
from lgd.training.resume import remove_resume_files
from lgd.training.run import failed_record


def stopped_record(
    experiment: Experiment, directory: Path, labels: Mapping[str, Any], step: int, seconds: float
) -> Record:
    """The record of a trial that the scheduler ended after ``step``, with the scores that it had by then.

    seconds: the device-seconds that it took. It is not saved.
    """
    points = evaluations_so_far(directory)
    reason = f"ended early after {step} of {experiment.schedule.steps} steps: others were ahead"
    update = {
        "status": "stopped",
        "steps": step,
        "evaluations": points,
        "student": points[-1].student if points else None,
        "device_seconds": {"training": round(seconds, 3)},
    }
    return failed_record(experiment, reason, directory=directory, **labels).model_copy(update=update)


def write_lost_record(trial: FrozenTrial, name: str, directory: Path, base: TrialConfig) -> None:
    """Write the record of a trial that has ended in the study, pruned or failed, and has a directory and no record.

    Its driver was killed, or had no space, between the two: nobody would go on with it, or count it. base: as it
    travels to workers. Raises OSError where it cannot be written.
    """
    there = outputs.names_in(directory)
    if not there or FILE in there or (directory / FILE).exists() or SET_ASIDE in there:
        # In place of one that was set aside another is proposed.
        return
    described = proposed_trial({**trial.params, "base": base, "name": name})
    experiment, labels = parse(described["experiment"]), described["labels"]
    if trial.state == TrialState.PRUNED:
        points = evaluations_so_far(directory)
        step = max([*trial.intermediate_values, *(x.step for x in points)], default=0)
        seconds = read_heartbeat(directory).device_seconds
        record = stopped_record(experiment, directory, labels, step, seconds)
    else:
        record = failed_record(experiment, "it failed, and its record was lost", directory=directory, **labels)
    record.save(directory)
    try_to_publish(directory / FILE)
    remove_resume_files(directory, record)
