"""Tables by name from records: the paper's with ours beside it, those of our own grids, and AP against cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from analysis.grid_runs import as_shown, nearest_preset
from analysis.image_intervals import over_images
from analysis.load import Run, arm_of
from analysis.noise_floor import noise_floor, noise_floor_text
from analysis.render import MISSING, TextTable, html_table, latex, markdown
from analysis.table_builders.across_table import across_table, across_text
from analysis.table_builders.arms import arms_table, arms_text
from analysis.table_builders.frontier import any_pretraining, frontier, frontier_text, with_notes_on_hours
from analysis.table_builders.gain_by_data import data_table
from analysis.table_builders.methods_table import methods_table, methods_text
from analysis.table_builders.names import ACROSS, GPU_HOURS, TIME_TO_TARGET, WITHOUT_GRID
from analysis.table_builders.paper_costs import costs, costs_text
from analysis.table_builders.paper_scores import comparison, comparison_text
from analysis.table_builders.time_to_target import time_to_target, time_to_target_text
from analysis.table_builders.tuning_tables import LEARNING_RATE, SCHEDULE_LENGTH, tuning, tuning_text
from analysis.teachers import shared_teacher_note, teacher_notes
from analysis.variants import Variant, variants
from analysis.verdicts.split_gains import split_table
from lgd.config.arms import Grid
from lgd.config.grids import EVIDENCE, NAMES, PRESET_FREE, TABLES, grid
from lgd.config.methods_grid import DISTILL_WEIGHT, METHODS, METHODS_BY_COST
from lgd.config.pays_grid import PAYS
from lgd.config.when_grids import GAIN_BY_DATA, TEACHER_NEEDS
from lgd.errors import InputError

RENDERERS: dict[str, Callable[[pd.DataFrame, TextTable], str]] = {
    "md": lambda frame, text: markdown(text),
    "latex": lambda frame, text: latex(text),
    "csv": lambda frame, text: frame.to_csv(index=False, lineterminator="\n"),
    "html": lambda frame, text: html_table(text),
}

ARMS_TABLES = (
    *(x for x in PRESET_FREE if x not in ("noise-floor", LEARNING_RATE, SCHEDULE_LENGTH)),
    DISTILL_WEIGHT,
    PAYS,
)
"""Grids whose arms are compared with one of them."""


def build(name: str, runs: Sequence[Run], *, resamples: int = 1000) -> tuple[pd.DataFrame, TextTable]:
    """A table by name: typed, and as texts. Raises InputError for an unknown one."""
    if name == "table7":
        frame = costs(runs)
        return frame, with_notes_on_hours(costs_text(frame), runs)
    if name in TABLES:
        frame = comparison(runs, name, resamples=resamples)
        return frame, comparison_text(name, frame)
    if name == TIME_TO_TARGET:
        frame = time_to_target(runs)
        return frame, time_to_target_text(frame, pretraining=any_pretraining(runs))
    if name == ACROSS:
        frame = across_table(runs)
        return frame, across_text(frame)
    if name in (GPU_HOURS, EVIDENCE):
        frame = frontier(runs)
        return frame, with_notes_on_hours(frontier_text(frame, pretraining=any_pretraining(runs)), runs)
    if name in (TEACHER_NEEDS, GAIN_BY_DATA):
        return _when(name, [run for run in runs if run.record.grid == name])
    if name in (LEARNING_RATE, SCHEDULE_LENGTH):
        own = [run for run in runs if run.record.grid == name]
        kept, others = nearest_preset(own) if own else ([], [])
        text = tuning_text(name, grid(name).title, kept)
        return tuning(name, kept), replace(text, notes=[*text.notes, *_left_out(others)])
    if name in (METHODS, METHODS_BY_COST):
        own = [run for run in runs if run.record.grid == name]
        frame = methods_table(own, name)
        return frame, with_notes_on_hours(methods_text(own, name, frame), own)
    if name == "noise-floor":
        frame = noise_floor(runs)
        return frame, noise_floor_text(frame)
    if name not in ARMS_TABLES:
        raise InputError(f"no table {name!r}: known are {', '.join((*NAMES, *WITHOUT_GRID))}")
    return _arms(grid(name), [run for run in runs if run.record.grid == name], resamples)


def _when(name: str, runs: Sequence[Run]) -> tuple[pd.DataFrame, TextTable]:
    """Of a grid that asks when LGD pays: what its gains are made of, or by images, for people; else AP and cost."""
    frame, records = frontier(runs), [run.record for run in runs]
    text = split_table(records) if name == TEACHER_NEEDS else data_table(records)
    hours = frontier_text(frame, pretraining=any_pretraining(runs))
    if text is None or name == GAIN_BY_DATA:
        return frame, with_notes_on_hours(text or hours, runs)
    return frame, text


def _arms(own: Grid, runs: Sequence[Run], resamples: int) -> tuple[pd.DataFrame, TextTable]:
    """A grid's arms of the preset nearest to the paper's; of several settings, each with its own reference."""
    kept, others = nearest_preset(runs) if runs else ([], [])
    own = as_shown(own, [run.record for run in kept])
    frames, texts = [], list[TextTable]()
    for variant in variants(kept) or [Variant("", ())]:
        arms, reference = [variant.name(arm.name) for arm in own.arms], variant.name(own.reference)
        if variant.label:
            # What was not trained in one of several settings is no row of its own.
            there = {arm_of(run.record) for run in variant.runs}
            arms = [arm for arm in arms if arm in there]
        records = [run.record for run in variant.runs]
        images = over_images(variant.runs, arms, reference, resamples)
        frames.append(arms_table(records, arms, reference, images))
        text = arms_text(records, arms, reference, own.title, images)
        texts.append(replace(text, notes=[*text.notes, *teacher_notes(records, arms), *shared_teacher_note(records)]))
    text = texts[0] if len(texts) == 1 else _stacked(texts, own)
    return pd.concat(frames, ignore_index=True), replace(text, notes=[*text.notes, *_left_out(others)])


def _left_out(presets: Sequence[str]) -> list[str]:
    return [f"Left out: runs of preset {' / '.join(presets)}."] if presets else []


def _stacked(texts: Sequence[TextTable], own: Grid) -> TextTable:
    """The tables of several settings as one; a column that only some have is left out of the others' rows."""
    header = list(dict.fromkeys(name for text in texts for name in _plain_header(text, own)))
    rows = [
        [dict(zip(_plain_header(text, own), row, strict=True)).get(name, MISSING) for name in header]
        for text in texts
        for row in text.rows
    ]
    notes = list(dict.fromkeys(note for text in texts for note in text.notes))
    return TextTable(texts[0].title, header, rows, notes, texts[0].left, texts[0].minor)


def _plain_header(text: TextTable, own: Grid) -> list[str]:
    difference = f"difference to {own.reference}"
    return [difference if name.startswith(difference) else name for name in text.header]
