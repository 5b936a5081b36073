"""The report of a results directory: CSV, table, figures and ``report.html``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from analysis.frame import frame, write_csv
from analysis.load import Run, load_runs
from analysis.plots.arms import arms_figure
from analysis.plots.figures import draw
from analysis.render import TextTable, markdown, markdown_text
from analysis.report.html_report import write_page
from analysis.shown import arms_shown
from analysis.table_builders.sweep_table import Sweep, main_table, sweep_of
from analysis.verdicts.sentences import Summary, summary
from lgd.errors import InputError
from lgd.files import write_text


class WrittenReport(NamedTuple):
    """What a terminal shows of a results directory."""

    table: TextTable
    said: Summary
    written: list[Path]
    """Paths."""


def write_report(directory: Path, damaged: list[str] | None = None) -> WrittenReport:
    """Write everything that a results directory shows: CSV, table, figures and ``report.html``.

    Returns what a terminal shows. damaged: as in :func:`analysis.load.load_runs`. Raises InputError as
    :func:`analysis.table_builders.sweep_table.sweep_of` and :func:`write_outputs` do.
    """
    runs = load_runs(directory, damaged=damaged)
    if damaged and not runs:
        raise InputError(damaged[0])
    sweep = sweep_of(directory, [run.record for run in runs])
    written = [*write_outputs(directory, sweep, runs), write_page(directory, sweep, runs, damaged or ())]
    records = [run.record for run in runs]
    few = sweep._replace(arms=arms_shown(records, sweep.arms, sweep.reference))
    return WrittenReport(main_table(runs, few), summary(records, directory), written)


def write_outputs(directory: Path, sweep: Sweep, runs: Sequence[Run] | None = None) -> list[Path]:
    """Write ``records.csv``, ``table.md`` and the figures from the records in ``directory``, each atomically.

    runs: those of ``directory``, where they are loaded already. Returns the paths. Raises InputError when there is no
    record, or a broken one.
    """
    runs = load_runs(directory) if runs is None else runs
    records = [run.record for run in runs]
    if not runs:
        raise InputError(f"{directory}: no trials/*/record.json in it")
    csv, table = directory / "records.csv", directory / "table.md"
    write_csv(frame(records), csv)
    said = "".join(f"{markdown_text(line)}\n\n" for line in summary(records, directory).lines)
    write_text(table, said + markdown(main_table(runs, sweep), title=False))
    drawn = arms_figure(records, sweep.arms, sweep.reference, directory / "arms") if sweep.reference else []
    return [csv, table, *drawn, *draw(runs, directory)]
