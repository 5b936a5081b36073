"""When a training changes phase."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phases:
    """Iterations at which a training changes phase."""

    frozen_until: int = 0
    """Before it the student's bottom-up backbone gets no update."""
    distill_from: int = 0
    """Outside [``distill_from``, ``distill_until``) the student does not learn from the distance: LGD's trains its
    adapter only, FGFI's is not computed."""
    distill_until: int | None = None
    """None: to the end."""

    def freezes_backbone(self, iteration: int) -> bool:
        return iteration < self.frozen_until

    def distills_student(self, iteration: int) -> bool:
        return self.distill_from <= iteration and (self.distill_until is None or iteration < self.distill_until)

    def clipped(self, periods: Iterable[Sequence[int]], steps: int) -> list[tuple[int, int]]:
        """The parts of ``periods`` in which the student learns from the distance, in a training of ``steps``.

        Periods are first and last steps, counted from 1; a last step of -1 is the training's.
        """
        until = steps if self.distill_until is None else min(steps, self.distill_until)
        found = [(max(a, self.distill_from + 1), min(until, b if b >= 0 else steps)) for a, b in periods]
        return [(first, last) for first, last in found if first <= last]


@dataclass(frozen=True)
class WatchedPhases(Phases):
    """Phases in which the student learns from the distance only while the teacher is better than the student.

    Whether it is, is measured while training (lgd/methods/teacher_watch.py). A class of its own, not a field, so that
    the fingerprints of other trainings stay as they are.
    """
