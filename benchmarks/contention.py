"""How busy the machine was with other work while something was timed: a busy machine makes times too long."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

BUSY = 0.25
"""Share of the cores used by other processes from which on a machine counts as busy."""


@dataclass
class OtherLoad:
    """How busy other processes kept the machine."""

    cores: float = 0.0
    """CPU cores that processes other than this one and its children used on average; 0 until the block ends."""


@contextmanager
def other_load() -> Iterator[OtherLoad]:
    """Measures the load of other processes during the block."""
    # Lazy: with pydantic, which --help does not need.
    from lgd.results.contention import CpuUsage

    found, usage = OtherLoad(), CpuUsage()
    with usage.measure():
        yield found
    used = usage.state()
    if used["seconds"]:
        found.cores = max(0.0, used["machine"] - used["own"]) / used["seconds"]


def contention_note(loads: Sequence[float], cores: int, spread: float | None = None) -> str:
    """One sentence on the load of other processes, in cores for each timing, and on the spread of the steps.

    spread: interquartile range of the step times over their median.
    """
    median = statistics.median(loads)
    text = f"Meanwhile other processes used {median:.1f} of {cores} cores"
    if len(loads) > 1:
        text += f" (median of {len(loads)} timings, at most {max(loads):.1f})"
    if spread is not None:
        text += f"; the middle half of a timing's steps spans {spread:.0%} of their median"
    verdict = "the machine was busy, and times may be too long" if median > BUSY * cores else "little contention"
    return f"{text}: {verdict}."
