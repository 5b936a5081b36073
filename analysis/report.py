"""What a results directory shows beside its records: CSV, table and figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from analysis.figures import arms_figure
from analysis.records import arm_of, frame, load_records, write_csv
from analysis.tables import to_markdown
from lgd.errors import InputError
from lgd.files import write_text
from lgd.record import Record

SWEEP = "sweep.json"


def write_outputs(directory: Path, arms: Sequence[str], reference: str) -> list[Path]:
    """Write ``records.csv``, ``table.md``, ``arms.png`` and ``arms.svg`` from the records in ``directory``.

    Each file is replaced atomically. Returns their paths. Raises InputError when there is no record, or a broken one.
    """
    records = load_records(directory)
    if not records:
        raise InputError(f"{directory}: no trials/*/record.json in it")
    csv, table = directory / "records.csv", directory / "table.md"
    write_csv(frame(records), csv)
    write_text(table, to_markdown(records, arms, reference))
    return [csv, table, *arms_figure(records, arms, reference, directory / "arms")]


def order(directory: Path, records: Sequence[Record]) -> tuple[list[str], str]:
    """The arms in the order to show them, and the reference.

    From ``arms`` (names) and ``reference`` in the directory's ``sweep.json``; without that file, the recorded arms
    with ``baseline`` first and the others alphabetical, the first one being the reference. Raises InputError for a
    file that does not say so.
    """
    path = directory / SWEEP
    if not path.exists():
        names = sorted({arm_of(r) for r in records}, key=lambda name: (name != "baseline", name))
        if not names:
            raise InputError(f"{directory}: no trials/*/record.json in it")
        return names, names[0]
    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    arms = sweep.get("arms") if isinstance(sweep, dict) else None
    if not isinstance(arms, list) or not arms or not all(isinstance(name, str) for name in arms):
        raise InputError(f"{path}: 'arms' must be a list of names")
    reference = sweep.get("reference", "baseline" if "baseline" in arms else arms[0])
    # It need not be among the arms: a sweep may run a few of its grid's.
    if not isinstance(reference, str):
        raise InputError(f"{path}: 'reference' must be an arm's name")
    return arms, reference
