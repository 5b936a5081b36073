"""A sweep as its results directory describes it: its arms, its table, and the command that began it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from analysis.arms import arms_text
from analysis.image_intervals import over_images
from analysis.load import Run, arm_of
from analysis.paper_tables import ARMS_TABLES, build
from analysis.rates import rate_notes, weight_notes
from analysis.render import TextTable
from analysis.teachers import arms_with_teacher, teacher_notes
from analysis.tuning_tables import LEARNING_RATE
from lgd.config.grids import NAMES, grid
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.results.sweep_spec import SEARCHED, SWEEP_FILE, SweepSpec


class Sweep(NamedTuple):
    """The sweep of a results directory: arms in their order, the arm they are compared with, and their grid.

    not_run: what the sweep did not get to, and why, a line an arm.
    """

    arms: list[str]
    reference: str
    grid: str = ""
    not_run: tuple[str, ...] = ()


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
    rates = [] if sweep.grid == LEARNING_RATE else rate_notes(run.record for run in runs)
    records = [run.record for run in runs]
    weights = weight_notes(records)
    teachers = teacher_notes(records, arms_with_teacher(records))
    return replace(table, notes=[*table.notes, *rates, *weights, *teachers, *sweep.not_run])


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
    arms = list(spec.arms)
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
