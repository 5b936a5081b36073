"""Which trainings have a record already and are not run again.

Not in lgd/results, because a record whose data was moved is recognised by the data set's fingerprint (lgd/data).
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

from lgd.config.experiment import Data, Experiment, difference
from lgd.errors import InputError
from lgd.results.cost_meter import HEARTBEAT_FILE
from lgd.results.record import FILE, Record, load
from lgd.results.sweep_spec import SWEEP_FILE
from lgd.storage import outputs
from lgd.storage.mirror import CHECKPOINTS


def existing_record(directory: Path, experiment: Experiment) -> Record | None:
    """The record of ``experiment`` in ``directory``; None where there is none or the training failed.

    One that diverged would diverge again, so it counts. Data with the same fingerprint is the same data, wherever it
    is stored. Raises InputError when the record is another experiment's, or the directory a sweep's.
    """
    if (directory / SWEEP_FILE).exists():
        raise InputError(f"{directory} holds a sweep's results: choose another --output")
    path = directory / FILE
    if not path.exists():
        return None
    record = load(path)
    there, source = record.experiment, experiment.data.source
    if there.data.source != source:
        fingerprint = _data_fingerprint(experiment.data)
        # A training that failed early has no fingerprint of its data in its record.
        if record.data.get("fingerprint", fingerprint) == fingerprint:
            there = there.override({"data.source": source})
    different = difference(there, experiment)
    if different:
        raise InputError(f"{path} holds another experiment: {different}; choose another --output or remove it")
    return None if record.status == "failed" else record


def remove_resume_files(directory: Path, record: Record) -> None:
    """Remove checkpoints and costs so far of the training that has this record, here and in a store; a failed one's
    stay, since it goes on from them.

    A training does so itself, unless its process is killed just after it has saved the record. For who has the
    directory to itself. What cannot be removed stays for the next command.
    """
    if record.status == "failed":
        return
    with suppress(OSError):
        outputs.remove_tree(directory / CHECKPOINTS)
    with suppress(OSError):
        outputs.remove(directory / HEARTBEAT_FILE)


@cache
def _data_fingerprint(data: Data) -> str:
    # Not at the top: commands that only ask which trainings are finished must not import torch.
    from lgd.data.catalog import load_dataset

    return load_dataset(data).fingerprint
