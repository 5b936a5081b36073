"""Resources of the trials of a sweep. Loads neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Resources of one trial, and how many trials run side by side."""

    cpus: int
    """Of each of its workers."""
    gpus: float
    """Of each of its workers, at most 1."""
    max_concurrent: int
    workers: int = 1
    spread: bool = False
    """Each worker on a node of its own."""
    may_grow: bool = False
    """Nodes may join while trials run, and then more run side by side."""

    @property
    def devices(self) -> float:
        """That a trial is charged for (see lgd/results/cost_meter.py)."""
        return self.workers * (self.gpus or 1.0)

    @property
    def description(self) -> str:
        """In words."""
        each = f"{self.cpus} CPU and {self.gpus:g} GPU"
        if self.workers > 1:
            each = f"{self.workers} workers of {each}{' on nodes of their own' if self.spread else ''}"
        return f"{self.max_concurrent} side by side, {each} each"
