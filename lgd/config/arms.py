"""An arm, a named training that is a small difference from a preset's, and a grid, arms to compare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lgd.config.paper import Training


@dataclass(frozen=True)
class Arm:
    """A named training of a grid."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """The settings that the arm is about; nothing overrides them."""
    question: str = ""
    """The question that the arm answers, in a few words."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Settings that it shares with the arms it is compared to (detector, backbone, schedule); ``--set`` overrides
    them."""
    reference: str = ""
    """The arm that its difference is taken to; "": the grid's."""
    training: Training | None = None
    """The training of the paper that the arm reproduces."""
    skipped: str = ""
    """Why it cannot be trained; it is then listed only."""
    on_request: bool = False
    """Whether it is trained only where ``--arms`` names it."""
    time_budget_from: str = ""
    """The arm whose training time it gets; its steps follow from measured times (ablations/equal_time.py)."""
    steps_from: str = ""
    """With ``time_budget_from``: the arm whose time per step is taken for its own."""
    pays_for_teacher: bool = False
    """With ``time_budget_from``: the training of its own teacher, which is that of ``steps_from``, comes out of the
    budget."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Settings that are multiplied, after ``--set``: numbers, whole ones rounded, and each of a tuple of numbers."""
    answers: bool = False
    """Whether the sweep asks if this arm is worth its cost: the verdict is about it (analysis/verdicts/verdict.py)."""
    seed_offset: int = 0
    """Added to its seeds. Its trainings are compared with those of the same seed before that."""

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Grid:
    """Arms to compare with each other."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    reference: str = "baseline"
    """The arm that differences are taken to; "" where each arm names its own."""
    seeds: int = 1
    """Trainings of each arm unless ``--seeds`` says otherwise."""

    @property
    def references(self) -> dict[str, str]:
        """The reference of each arm, by name."""
        return {arm.name: arm.reference or self.reference for arm in self.arms}
