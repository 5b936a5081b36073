"""The grid of ``lgd pays``: every method over the plain detector. Which of them are trained, the command says."""

from __future__ import annotations

from functools import cache

from lgd.config.arms import Arm, Grid
from lgd.config.method import known_methods, method_class

PAYS = "pays"

FIRST_STAGES = ("labelenc_stage1",)
"""Trainings that only prepare another."""


@cache
def pays_grid() -> Grid:
    """An arm for each method that is known here, installed packages' included, each with a verdict."""
    arms = [Arm("baseline", {"method.name": "baseline"}, "the detector alone")]
    for name in known_methods():
        if name != "baseline" and name not in FIRST_STAGES:
            found = method_class(name)
            learns = f"learns from {found.learns_from}" if found.learns_from else ""
            arms.append(Arm(found.title, {"method.name": name}, learns, answers=True))
    return Grid(PAYS, "Does distillation pay here?", tuple(arms))


def arm_of_method(name: str) -> str:
    """The arm that trains the method ``name``. Raises InputError for a method that is not known."""
    return method_class(name).title
