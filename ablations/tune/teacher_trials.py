"""The frozen teachers of a sweep's trials: which of them are to be trained, and whether there is one to learn from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ablations.trial_config import TEACHERS
from ablations.tune.ray_trial import TEACHER
from lgd.config.experiment import Experiment
from lgd.config.grids import Trial
from lgd.data.catalog import load_dataset
from lgd.results.record import FILE, Record, load
from lgd.storage import outputs
from lgd.training.resume import existing_record
from lgd.training.teacher import cost, teacher_directory
from lgd.training.teacher_gate import TeacherGateError, check_teacher, plain_students_ap


def teacher_trials(trials: Iterable[Trial], output: Path) -> list[Trial]:
    """A trial for every teacher that the ``trials`` need and that is not there yet. output: of the sweep."""
    found: dict[Path, Trial] = {}
    for trial in trials:
        if (teacher := trial.experiment.teacher) is not None:
            place = teacher_directory(teacher, output / TEACHERS)
            if existing_record(place, teacher) is None:
                found[place] = Trial(TEACHER, teacher, place)
    return list(found.values())


def untaught(experiment: Experiment, output: Path) -> str:
    """Why ``experiment`` has no teacher; "" where it needs none, or one that was trained or is still to be."""
    record = _record(experiment, output)[1]
    if record is None or record.status == "finished":
        return ""
    return f"the teacher's training {record.status}: {record.reason}"


def why_not_searched(base: Experiment, output: Path) -> str:
    """Why every trial of a search around ``base`` would fail for want of a teacher, in a line; "" where none would.

    A teacher that is given by its weights is not looked at: that is done where it has a device.
    """
    place, record = _record(base, output)
    if record is None:
        return ""
    nothing = "nothing is searched"
    if reason := untaught(base, output):
        # One that failed is trained again anyway.
        again = f"; to train it again, remove {outputs.shown(place / FILE)}" if record.status == "diverged" else ""
        return f"{nothing}: {reason}{again}"
    plain = plain_students_ap(base, load_dataset(base.data).fingerprint, outputs.beside(output / "trials" / "search"))
    try:
        check_teacher(base, cost(record, reused=True, shared_by=1), plain)
    except TeacherGateError as error:
        return f"{nothing}: {error}"
    return ""


def _record(experiment: Experiment, output: Path) -> tuple[Path, Record | None]:
    """The directory of the teacher, and its record if there is one."""
    if experiment.teacher is None:
        return output, None
    place = teacher_directory(experiment.teacher, output / TEACHERS)
    return place, load(place / FILE) if (place / FILE).exists() else None
