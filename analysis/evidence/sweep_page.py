"""The page of a study of any grid but evidence and noise-floor: verdicts, tables and figures as a sweep's report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.commands import training_command
from analysis.evidence.curves import lengths_table
from analysis.evidence.studies import NOTES, Study
from analysis.frame import row_dicts
from analysis.plots.figures import figures
from analysis.plots.style import save
from analysis.render import TextTable, markdown_text, with_interval
from analysis.report.html_report import ABOUT
from analysis.table_builders.gain_by_data import data_sentences, data_table
from analysis.table_builders.sweep_table import main_table, sweep_of
from analysis.table_builders.tuning_tables import LEARNING_RATE, SCHEDULE_LENGTH
from analysis.teachers import teacher_notes, teachers_text
from analysis.templating import render
from analysis.verdicts.sentences import summary
from analysis.verdicts.split_gains import split_table
from lgd.config.methods_grid import DISTILL_WEIGHT, METHODS, METHODS_BY_COST
from lgd.config.when_grids import GAIN_BY_DATA, TEACHER_NEEDS

FIGURES: Mapping[str, tuple[str, ...]] = {
    LEARNING_RATE: ("learning-rate",),
    SCHEDULE_LENGTH: ("schedule-length", "ap-hours"),
    DISTILL_WEIGHT: ("distill-weight",),
    METHODS: ("gain-against-cost", "pareto"),
    METHODS_BY_COST: ("gain-against-cost", "pareto"),
    GAIN_BY_DATA: ("gain-by-data", "pareto"),
    TEACHER_NEEDS: ("imitation-lead", "gain-against-cost", "label-signal"),
    "loss-weights": ("gain-against-cost", "loss-weights"),
}
"""The report's figures that a kept study of a grid shows."""

USUAL_FIGURES = ("gain-against-cost", "curves", "label-signal")


def sweep_page(study: Study, comparisons: pd.DataFrame) -> str:
    """The page's text, which shows the figures of :func:`draw_sweep` that there are.

    comparisons: rows of :func:`analysis.evidence.studies.comparisons` of this study.
    """
    records, written = study.records, study.directory / NOTES
    sweep = sweep_of(study.directory, records)
    table = main_table(study.runs, sweep)
    said, teachers = summary(records, study.directory), teachers_text(records)
    # The table says itself which teachers never led.
    teachers = teachers and TextTable(
        teachers.title, teachers.header, teachers.rows,
        [x for x in teachers.notes if x not in teacher_notes(records, [row[0] for row in teachers.rows])],
    )  # fmt: skip
    return render(
        "sweep.md.j2",
        study=study,
        first=records[0],
        command=training_command(study.directory, shlex.quote(f"results/{study.name}")),
        said=[
            *map(markdown_text, data_sentences(records) if study.grid.name == GAIN_BY_DATA else []),
            *(markdown_text(" ".join(x).strip()) for x in said.verdicts),
        ],
        notes=list(map(markdown_text, said.notes)),
        table=table,
        more=[
            x
            for x in (_lengths(study), split_table(records), data_table(records))
            if x is not None and x.title != table.title
        ],
        teachers=teachers,
        parts=_parts(row_dicts(comparisons)),
        shown=[(name, ABOUT[name]) for name, _ in figures(study.runs, names=_names(study))],
        dates=sorted(x for r in records for x in (r.started, r.finished) if x),
        reading=written.read_text(encoding="utf-8").strip() if written.exists() else "",
    )


def draw_sweep(study: Study) -> list[Path]:
    """The study's figures, drawn into its directory; their paths."""
    drawn = [save(figure, study.directory / name) for name, figure in figures(study.runs, names=_names(study))]
    return [path for paths in drawn for path in paths]


def _names(study: Study) -> tuple[str, ...]:
    return FIGURES.get(study.grid.name, USUAL_FIGURES)


def _lengths(study: Study) -> TextTable | None:
    """Only of the grid of lengths: elsewhere a baseline of equal cost is the only one that is longer."""
    return lengths_table(study) if study.grid.name == SCHEDULE_LENGTH else None


def _parts(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each variant against the arm that it is one of, a line each."""
    return [
        markdown_text(
            f"{row['arm']} over {row['other']}: {with_interval(row['gain'], row['gain_low'], row['gain_high'])},"
            f" {row['pairs']} seed{'s' * (row['pairs'] != 1)}."
        )
        for row in comparisons
        if row["kind"] == "LGD" and row["gain"] is not None
    ]
