"""A sweep as its results directory describes it: its arms, its table, and the command that began it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from analysis.grid_runs import PRESETS, shown_names
from analysis.image_intervals import over_images
from analysis.load import Run, arm_of, changes
from analysis.rates import rate_notes, weight_notes
from analysis.render import TextTable
from analysis.table_builders.arms import arms_text
from analysis.table_builders.build import ARMS_TABLES, build
from analysis.table_builders.tuning_tables import LEARNING_RATE
from analysis.teachers import arms_with_teacher, shared_teacher_note, teacher_notes
from lgd.config.experiment import split_assignment
from lgd.config.grids import NAMES, TABLES, grid
from lgd.config.presets import BUILT_IN_DETECTORS, built_in_settings
from lgd.config.schedule import PAPER_BATCH
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.results.sweep_spec import SEARCHED, SWEEP_FILE, SweepSpec


class Sweep(NamedTuple):
    """The sweep of a results directory: arms in their order, the arm they are compared with, and their grid."""

    arms: list[str]
    reference: str
    grid: str = ""
    not_run: tuple[str, ...] = ()
    """What the sweep did not get to, and why, a line an arm."""


def main_table(runs: Sequence[Run], sweep: Sweep) -> TextTable:
    """The table of a sweep: the paper's with ours beside it, or the arms of a grid of our own."""
    is_search = any(arm.startswith(SEARCHED) for arm in sweep.arms)
    if sweep.grid in NAMES and sweep.grid not in ARMS_TABLES and not is_search:
        table = build(sweep.grid, runs)[1]
    else:
        title = grid(sweep.grid).title if sweep.grid in NAMES else "Arms"
        images = over_images(runs, sweep.arms, sweep.reference)
        table = arms_text([run.record for run in runs], sweep.arms, sweep.reference, title, images)
    # Of a grid over the rates the table says so itself.
    records = [run.record for run in runs]
    rates = [] if sweep.grid == LEARNING_RATE else rate_notes(records)
    if sweep.grid in NAMES and sweep.grid != LEARNING_RATE and not is_search:
        rates += one_rate_note(records, sweep.grid)
    weights = weight_notes(records)
    teachers = [*teacher_notes(records, arms_with_teacher(records)), *shared_teacher_note(records)]
    return replace(
        table, notes=[*table.notes, *rates, *weights, *(x for x in teachers if x not in table.notes), *sweep.not_run]
    )


def one_rate_note(records: Iterable[Record], name: str) -> list[str]:
    """Where all arms of the grid ``name`` were trained at one learning rate, how to see whether that is fair.

    Nothing of the paper's own tables at its preset: their rates are the paper's.
    """
    ours = [record for record in records if record.status == "finished"]
    schedules = [record.experiment.schedule for record in ours]
    rates = {f"{x.resolved_lr * PAPER_BATCH / x.batch:g}" for x in schedules}
    presets = {record.preset for record in ours}
    if len(rates) != 1 or len(presets) != 1 or not presets <= set(PRESETS) or (name in TABLES and "paper" in presets):
        return []
    (rate,), (size,) = rates, presets
    # What was set is the rate for PAPER_BATCH images; tables of rates have that of the batch.
    own = {f"{x.resolved_lr:g} for a batch of {x.batch}, " for x in schedules if x.batch != PAPER_BATCH}
    of_batch = own.pop() if len(own) == 1 else ""
    overrides = list(dict.fromkeys(x for record in ours for x in changes(record)))
    return [
        f"one learning rate ({of_batch}{rate} for {PAPER_BATCH} images); whether each arm is at its best there:"
        f" lgd sweep run {LEARNING_RATE} --preset {size}{_options(overrides, size)}"
    ]


def _options(overrides: Sequence[str], size: str) -> str:
    """The options of a command that give these settings: its ``--detector`` where that says the same."""
    try:
        values = dict(map(split_assignment, overrides))
    except InputError:
        # A record may hold anything as its overrides.
        return ""
    options = []
    if "detector.source" in values:
        options.append(f"--detector {shlex.quote(str(values.pop('detector.source')))}")
    named = values.get("detector.name")
    built_in = next((built_in_settings(x, size) for x in BUILT_IN_DETECTORS if x == named), {})
    if built_in and all(values.get(key) == value for key, value in built_in.items()):
        options.append(f"--detector {named}")
        values = {key: value for key, value in values.items() if key not in built_in}
    options += [f"--set {shlex.quote(x)}" for x in overrides if split_assignment(x)[0] in values]
    return "".join(f" {x}" for x in options)


def sweep_of(directory: Path, records: Sequence[Record]) -> Sweep:
    """The sweep of the directory's ``sweep.json``; without that file, the recorded arms.

    Those come with ``baseline`` first and the others alphabetical, the first one being the reference. Raises InputError
    for a file that does not say what it should.
    """
    if not (directory / SWEEP_FILE).exists():
        names = sorted({arm_of(r) for r in records}, key=lambda name: (name != "baseline", name))
        if not names:
            raise InputError(f"{directory}: no trials/*/record.json in it")
        return Sweep(names, names[0])
    spec = SweepSpec.read(directory)
    arms = shown_names(spec.arms, records)
    if spec.search:
        arms += sorted({arm_of(r) for r in records if arm_of(r).startswith(SEARCHED)})
    ended = spec.ended
    not_run = [f"Not run ({ended.why or 'no record'}): {x}." for x in _by_arm(ended.not_run)] if ended else []
    return Sweep(arms, spec.reference, spec.grid, tuple(not_run))


def _by_arm(trials: Iterable[str]) -> Iterator[str]:
    """``arm, seed 0`` and ``arm, seed 1`` as ``arm, seeds 0, 1``; what is said of a seed stays with it."""
    seeds: dict[str, list[str]] = {}
    for trial in trials:
        arm, found, seed = trial.rpartition(", seed ")
        # What is no trial is said as it is.
        seeds.setdefault(arm or trial, []).extend([seed] if found else [])
    for arm, of in seeds.items():
        yield f"{arm}, seed{'s' * (len(of) > 1)} {', '.join(of)}" if of else arm
