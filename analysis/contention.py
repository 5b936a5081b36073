"""Notes on other load of the machine while costs were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from analysis.load import arm_of, other_load, step_spread
from lgd.results.record import Record

OTHER_LOAD = (
    "other load: the part of the machine's cores that other work on the machine used while the trainings ran, the"
    " sweep's own other trials included; where it differs between arms, their costs do not compare."
)
"""A column of the table of arms."""


def step_spread_note(records: Sequence[Record]) -> list[str]:
    """How far the steps of the finished trainings differ in time; none where no record says."""
    found = _range(records, step_spread)
    if not found:
        return []
    return [
        f"spread of the step times (interquartile range over median): {found}; a wide one means that"
        " something else slowed some of the steps, and the cost is less certain."
    ]


def contention_notes(records: Sequence[Record]) -> list[str]:
    """For a table without a column of it: other work, and :func:`step_spread_note`."""
    found = _range(records, other_load)
    other = [
        f"Other work on the machine, the sweep's own other trials included, used of its cores meanwhile: {found};"
        " where it differs between arms, their hours and costs do not compare."
    ]
    return [*(other if found else []), *step_spread_note(records)]


def _range(records: Sequence[Record], read: Callable[[Record], float | None]) -> str:
    """Lowest and highest value of the finished records, with their arms; "" where none has one."""
    finished = (record for record in records if record.status == "finished")
    values = [(value, arm_of(record)) for record in finished if (value := read(record)) is not None]
    if not values:
        return ""
    (low, quiet), (high, busy) = min(values), max(values)
    if f"{low:.0%}" == f"{high:.0%}":
        return f"{high:.0%}"
    return f"{low:.0%} ({quiet}) to {high:.0%} ({busy})" if quiet != busy else f"{low:.0%} to {high:.0%} ({busy})"
