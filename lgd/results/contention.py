"""How much of a machine's CPU a training and the other processes used while it ran (:class:`record.Contention`)."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil

from lgd.results.record import Contention

Usage = dict[str, float]
"""``seconds`` of wall-clock time, and the CPU seconds that the ``machine`` and this process (``own``) used in them."""

FEWEST_TIMES = 4
"""Step times from which a spread is computed."""


class CpuUsage:
    """Adds up the CPU seconds that this process and the whole machine use while the block of :meth:`measure` runs.

    The machine's cores are those that this process may run on. ``read`` is replaceable for tests.
    """

    def __init__(self, read: Callable[[], Usage] | None = None) -> None:
        self._read = read or _read
        self._sum: Usage = {"seconds": 0.0, "machine": 0.0, "own": 0.0}
        self._since: Usage | None = None

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count what is used inside the block."""
        self._since = self._read()
        try:
            yield
        finally:
            self._sum, self._since = self.state(), None

    def state(self) -> Usage:
        """The sums up to now."""
        if self._since is None:
            return dict(self._sum)
        now = self._read()
        return {name: value + now[name] - self._since[name] for name, value in self._sum.items()}

    def restore(self, state: Mapping[str, float]) -> None:
        """Add an earlier attempt's :meth:`state`."""
        self._sum = {name: value + state[name] for name, value in self._sum.items()}


def contention(workers: Sequence[tuple[str, Usage]], step_seconds: Sequence[float]) -> Contention | None:
    """Of a training over ``workers``, each the name of its machine and its :class:`CpuUsage` there.

    step_seconds: measured step times. None where no time was measured.
    """
    found = []
    for node in dict.fromkeys(name for name, _ in workers):
        here = [usage for name, usage in workers if name == node]
        seconds = here[0]["seconds"]
        if seconds > 0:
            own = sum(usage["own"] for usage in here) / seconds
            # Both are read one after the other, so they may be off by a moment.
            found.append((own, max(0.0, here[0]["machine"] / seconds - own)))
    if not found:
        return None
    own, other = max(found, key=sum)
    return Contention(
        own_cores=round(own, 3), other_cores=round(other, 3), cores=len(_cores()), step_spread=_spread(step_seconds)
    )


def _spread(values: Sequence[float]) -> float | None:
    if len(values) < FEWEST_TIMES:
        return None
    low, middle, high = statistics.quantiles(values, n=4)
    return round((high - low) / middle, 4) if middle else None


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _read() -> Usage:
    idle = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is part of user
    of_each = psutil.cpu_times(percpu=True)
    used = sum(
        value
        for core in _cores()
        if core < len(of_each)
        for name, value in of_each[core]._asdict().items()
        if name not in idle
    )
    return {"seconds": time.perf_counter(), "machine": used, "own": _own_cpu_seconds()}


def _own_cpu_seconds() -> float:
    """Of this process and its children: those that run, and those that have ended."""
    process = psutil.Process()
    total = sum(process.cpu_times()[:4])
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            total += sum(child.cpu_times()[:4])
    return total
