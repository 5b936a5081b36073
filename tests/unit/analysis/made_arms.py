"""Arms of five seeds, made of records alone, and their verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.verdicts.questions import asked
from analysis.verdicts.verdict import Verdict, verdicts
from lgd.results.record import Record

from .conftest import MakeRecord

SEEDS = (0.2, -0.1, 0.0, 0.1, -0.2)
"""What the seeds of an arm differ by, points of AP: beside it the baseline is even."""


def trained(make: MakeRecord, name: str, ap: float, seconds: float = 100.0, **changes: Any) -> list[Record]:
    """An arm's five seeds; changes: of its settings, ``__`` for a dot."""
    records = []
    for seed, off in enumerate(SEEDS):
        record = make(name, seed, ap + (0 if name == "baseline" else off), seconds)
        assignments = {key.replace("__", "."): value for key, value in changes.items()}
        records.append(record.model_copy(update={"experiment": record.experiment.override(assignments)}))
    return records


def one_verdict(records: list[Record], directory: Path) -> Verdict:
    found = verdicts(records, asked(directory, records))
    assert len(found) == 1
    return found[0]


def ended(records: list[Record], status: str, seeds: tuple[int, ...]) -> list[Record]:
    """The records, those of ``seeds`` without a result."""
    without = {"status": status, "student": None, "reason": "why"}
    return [x.model_copy(update=without) if x.experiment.seed in seeds else x for x in records]
