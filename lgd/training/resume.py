"""Which trainings need no further run.

Not in lgd/results: a record whose data lies elsewhere now is told by its data set's fingerprint, which lgd/data knows.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from lgd.config.experiment import Data, Experiment, difference
from lgd.errors import InputError
from lgd.results.record import FILE, Record, load


def existing_record(directory: Path, experiment: Experiment) -> Record | None:
    """The record in ``directory`` of a training that needs no further run: any but a failed one, or None.

    What diverged would diverge again. Data of the same fingerprint is the same data wherever it lies. Raises InputError
    when it is the record of another experiment.
    """
    path = directory / FILE
    if not path.exists():
        return None
    record = load(path)
    there, source = record.experiment, experiment.data.source
    if there.data.source != source:
        fingerprint = _data_fingerprint(experiment.data)
        # One that failed may not have come to look at its data.
        if record.data.get("fingerprint", fingerprint) == fingerprint:
            there = there.override({"data.source": source})
    different = difference(there, experiment)
    if different:
        raise InputError(f"{path} holds another experiment: {different}; choose another --output or remove it")
    return None if record.status == "failed" else record


@cache
def _data_fingerprint(data: Data) -> str:
    # Here, not at the top: whoever only asks which trainings are finished need not load torch.
    from lgd.data.catalog import load_dataset

    return load_dataset(data).fingerprint
