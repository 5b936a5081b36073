"""What a results directory shows beside its records: CSV, table and figure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from analysis.arms import over_images
from analysis.charts import draw
from analysis.figures import arms_figure
from analysis.load import Run, arm_of, frame, load_runs, write_csv
from analysis.render import Shown, markdown
from analysis.tables import ARMS_TABLES, arms_shown, build
from lgd.config.grids import NAMES, grid
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.record import Record

SWEEP = "sweep.json"

SEARCHED = "search-"
"""How the arms begin that a search proposed."""


class Sweep(NamedTuple):
    """What a results directory is about: arms to show, in their order, what they are compared with, and their grid.

    not_run: what the sweep did not get to, and why, a line an arm.
    """

    arms: list[str]
    reference: str
    grid: str = ""
    not_run: tuple[str, ...] = ()


def main_table(runs: Sequence[Run], sweep: Sweep) -> Shown:
    """The table of a sweep: the paper's with ours beside it, or the arms of a grid of our own."""
    searched = any(arm.startswith(SEARCHED) for arm in sweep.arms)
    if sweep.grid in NAMES and sweep.grid not in ARMS_TABLES and not searched:
        shown = build(sweep.grid, runs)[1]
    else:
        title = grid(sweep.grid).title if sweep.grid in NAMES else "Arms"
        images = over_images(runs, sweep.arms, sweep.reference)
        shown = arms_shown([run.record for run in runs], sweep.arms, sweep.reference, title, images)
    return replace(shown, notes=[*shown.notes, *sweep.not_run])


def write_outputs(directory: Path, sweep: Sweep) -> list[Path]:
    """Write ``records.csv``, ``table.md`` and the figures from the records in ``directory``.

    Each file is replaced atomically. Returns their paths. Raises InputError when there is no record, or a broken one.
    """
    runs = load_runs(directory)
    records = [run.record for run in runs]
    if not runs:
        raise InputError(f"{directory}: no trials/*/record.json in it")
    csv, table = directory / "records.csv", directory / "table.md"
    write_csv(frame(records), csv)
    write_text(table, markdown(main_table(runs, sweep), title=False))
    drawn = arms_figure(records, sweep.arms, sweep.reference, directory / "arms") if sweep.reference else []
    return [csv, table, *drawn, *draw(runs, directory)]


def order(directory: Path, records: Sequence[Record]) -> Sweep:
    """What the directory's ``sweep.json`` says; without that file, the recorded arms.

    Those come with ``baseline`` first and the others alphabetical, the first one being the reference. Raises InputError
    for a file that does not say what it should.
    """
    path = directory / SWEEP
    if not path.exists():
        names = sorted({arm_of(r) for r in records}, key=lambda name: (name != "baseline", name))
        if not names:
            raise InputError(f"{directory}: no trials/*/record.json in it")
        return Sweep(names, names[0])
    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    arms = sweep.get("arms") if isinstance(sweep, dict) else None
    if not isinstance(arms, list) or not (arms or "search" in sweep) or not all(isinstance(name, str) for name in arms):
        raise InputError(f"{path}: 'arms' must be a list of names")
    reference = sweep.get("reference", "baseline" if "baseline" in arms else next(iter(arms), ""))
    # It need not be among the arms: a sweep may run a few of its grid's.
    if not isinstance(reference, str):
        raise InputError(f"{path}: 'reference' must be an arm's name")
    if "search" in sweep:
        arms = [*arms, *sorted({arm_of(r) for r in records if arm_of(r).startswith(SEARCHED)})]
    ended = sweep.get("ended") or {}
    try:
        not_run = tuple(f"Not run ({ended['why'] or 'no record'}): {x}." for x in _by_arm(ended.get("not_run", ())))
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{path}: 'ended' must say why, and what was not run") from None
    return Sweep(arms, reference, str(sweep.get("grid", "")), not_run)


def _by_arm(trials: Iterable[str]) -> Iterator[str]:
    """``arm, seed 0`` and ``arm, seed 1`` as ``arm, seeds 0, 1``; what is said of a seed stays with it."""
    seeds: dict[str, list[str]] = {}
    for trial in trials:
        arm, found, seed = trial.rpartition(", seed ")
        # What is no trial is said as it is.
        seeds.setdefault(arm or trial, []).extend([seed] if found else [])
    for arm, of in seeds.items():
        yield f"{arm}, seed{'s' * (len(of) > 1)} {', '.join(of)}" if of else arm
