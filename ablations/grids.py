"""Grids: each arm is a named, one-line difference from a base experiment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lgd.errors import InputError
from lgd.experiment import Experiment


@dataclass(frozen=True)
class Arm:
    """A named intervention: the settings it changes, and what it asks."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Grid:
    """Arms to compare with each other. ``reference`` is the arm that differences are taken to."""

    name: str
    title: str
    arms: tuple[Arm, ...]
    reference: str = "baseline"


COMPONENTS = Grid(
    name="components",
    title="LGD's components on RetinaNet: what each one is worth and what it costs",
    arms=(
        Arm("baseline", {"method.name": "baseline"}, "the detector alone"),
        Arm("LGD", {}, "encoder, adapter and mapper"),
        Arm("without encoder", {"method.encoder": False}, "objects attend to appearance, not to labels"),
        Arm("without adapter", {"method.adapter": False}, "no exchange between objects"),
        Arm("without mapper", {"method.mapper": False}, "nothing written into boxes, the context object alone"),
        Arm("appearance only", {"method.variant": "appearance_only"}, "appearance embeddings, no attention"),
        Arm("label only", {"method.variant": "label_only"}, "label embeddings, no attention"),
        Arm("label queries", {"method.variant": "label_queries"}, "labels ask, appearance answers"),
    ),
)

GRIDS = {grid.name: grid for grid in (COMPONENTS,)}


def grid(name: str) -> Grid:
    """The grid of that name. Raises InputError for an unknown one."""
    if name not in GRIDS:
        raise InputError(f"no grid {name!r}: known are {', '.join(GRIDS)}")
    return GRIDS[name]


@dataclass(frozen=True)
class Trial:
    """One training of a sweep: an arm with a seed. ``directory`` is absolute: workers run elsewhere."""

    arm: str
    experiment: Experiment
    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name


def absolute(source: str) -> str:
    """A data source with its directory made absolute, so that it means the same wherever a sweep is resumed."""
    scheme, colon, path = source.partition(":")
    return f"{scheme}:{Path(path).resolve()}" if colon else source


def plan(grid: Grid, base: Experiment, seeds: int, overrides: Iterable[str], output: Path) -> list[Trial]:
    """Every trial of a sweep, seed after seed, so that an interrupted one has whole comparisons first.

    ``overrides`` (``key=value``) hold for every arm; an arm's own changes come on top. Raises InputError when an
    arm cannot be built from them, naming the arm.
    """
    overrides = list(overrides)
    base = base.override(overrides)
    base = base.override({"data.source": absolute(base.data.source)})
    trials = []
    for seed in range(seeds):
        for arm in grid.arms:
            try:
                experiment = base.override({**arm.changes, "seed": base.seed + seed})
            except InputError as error:
                raise InputError(f"arm {arm.name!r}: {error}") from None
            directory = output.resolve() / "trials" / f"{arm.slug}-seed{experiment.seed}"
            trials.append(Trial(arm.name, experiment, directory))
    return trials
