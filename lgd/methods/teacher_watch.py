"""Whether the teacher is better than its student, measured while both train.

The instructive features' detection loss is compared with the student's own, on the same batches through the same head.
A teacher with the higher loss has nothing to teach: with ``schedule.distill_from=auto`` the student learns from it only
while it has been better for some time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lgd.distributed import ranks

READS = 50
"""How often a training reads the losses, each time as means over the steps since the last; reading waits for the
device."""

MEMORY = 0.5
"""Part of the running means that stays at a read, about three reads or 6% of a training back."""

PATIENCE = 3
"""Reads in a row with the teacher ahead (behind) after which the distillation starts (pauses)."""


def read_period(steps: int) -> int:
    """Steps between two reads in a training of ``steps``."""
    return max(1, steps // READS)


class TeacherWatch:
    """Running means of the student's detection loss and of the instructive features', and what follows from them."""

    def __init__(self) -> None:
        self.leads: list[tuple[int, float]] = []
        """By how much the instructive features' loss is lower, as a part of the student's: (steps done, lead)."""
        self.periods: list[list[int]] = []
        """First and last step, counted from 1, of each time that the teacher was ahead; the last is -1 as long as it
        is."""
        self._sums: Tensor | None = None
        """Sums of the losses since the last read (student, instructive) and their number: on the device, not read."""
        self._means: list[float] = []
        self._streak = 0

    @property
    def teacher_is_ahead(self) -> bool:
        """Whether the teacher has been ahead for PATIENCE reads, and not been behind for as many since."""
        return bool(self.periods) and self.periods[-1][1] < 0

    def add(self, student: Mapping[str, Tensor], instructive: Mapping[str, Tensor]) -> None:
        """Add the losses of one forward pass, unweighted."""
        totals = [
            torch.stack([x.detach().double() for x in losses.values()]).sum() for losses in (student, instructive)
        ]
        sums = torch.stack([*totals, torch.ones_like(totals[0])])
        self._sums = sums if self._sums is None else self._sums + sums

    def read(self, step: int) -> None:
        """Update means and verdict after ``step`` steps. All workers must call it, and all come to the same verdict."""
        own = [0.0, 0.0, 0.0] if self._sums is None else self._sums.tolist()
        self._sums = None
        student, instructive, count = (sum(x) for x in zip(*ranks.all_gather(own), strict=True))
        if not (count and math.isfinite(student + instructive)):
            return
        new = [student / count, instructive / count]
        self._means = [MEMORY * a + (1 - MEMORY) * b for a, b in zip(self._means or new, new, strict=True)]
        lead = 1 - self._means[1] / self._means[0] if self._means[0] else 0.0
        self.leads.append((step, lead))
        ahead = lead > 0
        self._streak = self._streak + 1 if ahead != self.teacher_is_ahead else 0
        if self._streak < PATIENCE:
            return
        self._streak = 0
        if ahead:
            self.periods.append([step + 1, -1])
        else:
            self.periods[-1][1] = step

    def curve(self) -> list[tuple[int, float]]:
        """``leads``, rounded, for the record."""
        return [(step, round(lead, 4)) for step, lead in self.leads]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, the sums of all workers added up. All workers must call it."""
        own = [0.0, 0.0, 0.0] if self._sums is None else self._sums.tolist()
        return {
            "sums": [sum(x) for x in zip(*ranks.all_gather(own), strict=True)],
            "means": self._means,
            "streak": self._streak,
            "leads": self.leads,
            "periods": self.periods,
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from :meth:`state`."""
        # One worker goes on with the sums of all: they are added up again at the next read.
        if ranks.is_main_process() and state["sums"][2]:
            self._sums = torch.tensor(state["sums"], dtype=torch.float64, device=device)
        self._means, self._streak = list(state["means"]), int(state["streak"])
        self.leads = [(int(step), float(lead)) for step, lead in state["leads"]]
        self.periods = [[int(first), int(last)] for first, last in state["periods"]]
