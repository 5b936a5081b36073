"""Which runs fill which arm of a grid: by what they trained, whatever grid or command they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import get_args

from analysis.load import Run, arm_of, changes, identity, same_data, trained
from lgd.config.arms import Arm, Grid
from lgd.config.experiment import Experiment
from lgd.config.extra_arms import EVERY, with_extra_arms
from lgd.config.grids import experiment_of, grid
from lgd.config.paper import Training
from lgd.config.paper_recipes import named
from lgd.config.presets import PAPER_TABLES_AT, Preset, preset
from lgd.errors import InputError
from lgd.results.record import Record

PRESETS: tuple[str, ...] = (*sorted(set(get_args(Preset)) - set(PAPER_TABLES_AT)), *PAPER_TABLES_AT)
"""The nearer to the paper, the later."""

RunsBySeed = dict[int, Run]
"""Finished runs of one training, seeds rising."""


@dataclass(frozen=True)
class Setting:
    """Preset of an arm's runs, and the command's changes to it."""

    preset: str
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Marks a table's cell; "" for the paper's own setting."""
        if not self.overrides:
            return "" if self.preset == "paper" else self.preset
        return f"{self.preset}, changed"

    @property
    def rank(self) -> tuple[bool, int, tuple[str, ...]]:
        """Lower is nearer to the paper."""
        return self.label != "", -PRESETS.index(self.preset), self.overrides


@dataclass
class GridRuns:
    """The runs of a grid's arms, by arm and setting. Arms are compared within one setting alone."""

    grid: Grid
    runs: dict[str, dict[Setting, RunsBySeed]] = field(default_factory=dict)

    def setting(self, arm: str) -> Setting | None:
        """The setting nearest to the paper's that an arm has finished runs of."""
        return min(self.runs.get(arm, {}), key=lambda x: x.rank, default=None)

    def runs_of(self, arm: str, setting: Setting | None) -> RunsBySeed:
        return self.runs.get(arm, {}).get(setting, {}) if setting else {}

    @property
    def trainings(self) -> list[tuple[Arm, Training]]:
        """The arms that are rows of a table of the paper, with the paper's training."""
        return [(arm, arm.training) for arm in self.grid.arms if arm.training is not None]


def runs_of_grid(runs: Sequence[Run], table: str) -> GridRuns:
    """Finished runs by the arm of a grid that they trained.

    A run counts for an arm when its experiment is the arm's at its preset with its overrides. Of a training that ran
    under two names, the run that finished first counts.
    """
    found = GridRuns(grid(table))
    planned: dict[Setting, dict[Experiment, str]] = {}
    for run in (x for x in runs if x.record.status == "finished"):
        setting = _setting(run.record)
        if setting is None:
            continue
        if setting not in planned:
            planned[setting] = _planned(table, setting)
        arm = planned[setting].get(identity(trained(run.record)))
        if arm is not None:
            seeds = found.runs.setdefault(arm, {}).setdefault(setting, {})
            other = seeds.get(run.record.experiment.seed)
            if other is None or run.record.finished < other.record.finished:
                seeds[run.record.experiment.seed] = run
    for settings in found.runs.values():
        for setting, seeds in settings.items():
            settings[setting] = dict(sorted(seeds.items()))
    return found


def _setting(record: Record) -> Setting | None:
    """None for a run of no known preset and no experiment of the paper."""
    if record.preset in PRESETS:
        return Setting(record.preset, changes(record))
    try:
        named(record.preset)
    except InputError:
        return None
    return Setting("paper", changes(record))


def _planned(table: str, setting: Setting) -> dict[Experiment, str]:
    """The arms of a grid by what they would train in a setting."""
    found: dict[Experiment, str] = {}
    try:
        arms = grid(table, setting.preset).arms
    except InputError:
        # The paper's tables are not defined at every preset.
        return found
    for arm in arms:
        try:
            experiment = None if arm.skipped else experiment_of(arm, preset(setting.preset), setting.overrides)
        except InputError:
            # These runs' overrides do not suit this arm, so none of them can be it.
            continue
        if experiment is not None:
            found[identity(experiment)] = arm.name
    return found


def mark_of(setting: Setting | None, runs: RunsBySeed) -> str | None:
    """What marks the cells of ``runs`` in a table of the paper: their setting, and additions of ours; None without."""
    if setting is None or not runs:
        return None
    ours = dict.fromkeys(run.record.ours for run in runs.values() if run.record.ours)
    return "; ".join([setting.label, *ours])


def records_of(runs: Mapping[int, Run]) -> dict[int, Record]:
    return {seed: run.record for seed, run in runs.items()}


def on_same_data(runs: RunsBySeed, reference: RunsBySeed) -> RunsBySeed:
    """The runs of ``reference`` that a run of the same seed may be paired with: scored on the same data."""
    return {x: run for x, run in reference.items() if x not in runs or same_data(runs[x].record, run.record)}


def nearest_preset(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs of the preset nearest to the paper's that any has finished with; the other presets' names."""
    finished = {run.record.preset for run in runs if run.record.status == "finished"}
    presets = sorted(
        {run.record.preset for run in runs},
        key=lambda x: (x not in finished, x not in PRESETS, -PRESETS.index(x) if x in PRESETS else 0, x),
    )
    return [run for run in runs if run.record.preset == presets[0]], presets[1:]


def reference_of(record: Record) -> str:
    """The arm that a record's arm is compared with in its grid; "baseline" for one outside a grid."""
    return references(record.grid, record.preset).get(record.arm, "baseline")


def shown_names(arms: Iterable[str], records: Iterable[Record]) -> list[str]:
    """The arms of a grid or a sweep, in their order, by the names that :func:`analysis.load.arm_of` gives ``records``.

    An arm that was trained both with and without an addition of ours comes twice.
    """
    found = _by_grids_name(records)
    return [name for arm in arms for name in found.get(arm, [arm])]


def _by_grids_name(records: Iterable[Record]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for record in records:
        found.setdefault(record.arm, {})[arm_of(record)] = None
    return {arm: list(names) for arm, names in found.items()}


def as_shown(own: Grid, records: Iterable[Record]) -> Grid:
    """``own``, its arms named as :func:`shown_names` does. References are baselines, which have no additions."""
    names = _by_grids_name(records)

    def first(arm: str) -> str:
        return names.get(arm, [arm])[0]

    arms = [
        replace(arm, name=shown, time_budget_from=first(arm.time_budget_from), steps_from=first(arm.steps_from))
        for arm in own.arms
        for shown in names.get(arm.name, [arm.name])
    ]
    return replace(own, arms=tuple(arms))


@cache
def references(name: str, size: str) -> dict[str, str]:
    """The reference of each arm of a grid, and of each that can be added to it, by name; none for an unknown grid."""
    try:
        return with_extra_arms(grid(name, size), EVERY, preset(size)).references
    except InputError:
        return {}
