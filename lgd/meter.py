"""Where the time of a run went.

Definitions: *set-up* is everything before the first step (data, model, optimiser); *training* the steps themselves,
waiting for data included; *evaluation* inference and scoring. A second counts for the innermost phase it falls in.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import torch

Phase = Literal["setup", "training", "evaluation"]


class Meter:
    """Wall-clock seconds by phase. ``clock`` is replaceable for tests."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._stack: list[Phase] = []
        self._since = 0.0
        self.seconds: dict[Phase, float] = {"setup": 0.0, "training": 0.0, "evaluation": 0.0}

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the block as ``name``; an outer phase pauses meanwhile."""
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def _settle(self) -> None:
        # Work still queued on the GPU belongs to the phase that queued it.
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = self._clock()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


def reset_peak_memory() -> None:
    """Start the peaks anew, so that a process that runs several trainings reports each one's own."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    # Where this is not Linux, or not allowed, the host's peak is that of the process so far.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> dict[str, float]:
    """Largest memory since the last reset, MiB: ``host`` (resident) and, with a GPU, ``device`` (allocated)."""
    peaks = {"host": _host_peak_mib()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["device"] = torch.cuda.max_memory_allocated() / 2**20
    return peaks


def _host_peak_mib() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
