"""``report.html``: a results directory on one self-contained page."""

from __future__ import annotations

import base64
import io
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.commands import training_command
from analysis.contention import step_spread_note
from analysis.frame import row_dicts
from analysis.load import Run, arm_of, gpu_hours, is_reproduction, other_load, step_spread
from analysis.plots.figures import figures
from analysis.plots.style import NARROW, has_hollow_bars
from analysis.render import MISSING, TextTable, html_table, interval, number, signed, with_mark, with_unit
from analysis.report.examples import Example, examples
from analysis.report.opening import trained_on, words
from analysis.shown import MOST_ROWS, arms_shown, best_rows, first_rows
from analysis.stats.differences import verdict
from analysis.table_builders.arms import machine
from analysis.table_builders.build import build
from analysis.table_builders.frontier import (
    any_pretraining,
    frontier,
    frontier_text,
    hours_name,
    on_gpu,
    unknown_hours,
    with_notes_on_hours,
)
from analysis.table_builders.gain_by_data import data_table
from analysis.table_builders.names import GPU_HOURS, TIME_TO_TARGET, WITHOUT_GRID
from analysis.table_builders.sweep_table import Sweep, main_table
from analysis.teachers import teachers_text
from analysis.templating import environment
from analysis.verdicts.questions import asked
from analysis.verdicts.sentences import summary
from analysis.verdicts.split_gains import split_table
from lgd.config.grids import NAMES, TABLES, grid
from lgd.config.when_grids import GAIN_BY_DATA, TEACHER_NEEDS
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.record import Record
from lgd.results.sweep_spec import SEARCHED, SWEEP_FILE
from lgd.storage import outputs

PAGE = "report.html"

SLOWEST = 5
"""Trials listed as the slowest."""

VERSIONS = ("torch", "detectron2")

ABOUT = {
    "gain-against-cost": "Gain in AP against the cost of training. Blue: more than the baseline, beyond noise; orange:"
    " less; grey: within noise; red squares: the baseline itself, trained longer.",
    "curves": "AP while training, of the student and of the instructive features.",
    "ap-hours": "AP while training against the device-hours spent until then.",
    "learning-rate": "AP against the learning rate, an arm a line.",
    "schedule-length": "AP against the steps of the whole training, each length with its own decay.",
    "distill-weight": "AP against the weight of the distillation loss, a method a line; dashed: the baseline.",
    "gain-by-data": "Gain in AP over the baseline by number of training images, a row a method and backbone.",
    "imitation-lead": "What imitation gains against the teacher's lead over its student, an arm a point.",
    "gains": "AP over the baseline of the same setting, points.",
    "loss-weights": "AP against the weights of the losses.",
    "profile": "Part of the runs that gain more than so many points of AP, over data sets and detectors.",
    "classes": "Difference of each class's AP between LGD and its baseline, points.",
    "label-signal": "How far the outputs of the teacher's modules follow the labels, as training goes on.",
    "pareto": "AP against what the trainings took. A numbered point is an arm; filled ones are on the Pareto front.",
    "cost": "What a training takes: the student's own, and what the method adds.",
}
"""Alternative text of each figure."""

HOLLOW = " Hollow bars are from one seed."
"""Added where a figure has such bars."""

WITH_PRETRAINING = "What a training takes: the teacher's pre-training, the student's own, and what the method adds."
"""That of ``cost`` where a frozen teacher was trained."""

PARTS = {
    "verdict": ("gain-against-cost",),
    "curves": ("curves", "ap-hours", "learning-rate", "schedule-length", "distill-weight", "gain-by-data"),
    "arms": ("gains", "loss-weights", "profile", "classes"),
    "teacher": ("label-signal", "imitation-lead"),
    "costs": ("pareto", "cost"),
}
"""The figures of each part of the page."""

VERDICTS = {"more": "more", "less": "less", "noise": "within noise", "": "one seed: decides nothing"}

MOST_RESULTS = 16
"""Arms in the first table; the others are in those that follow."""

BUSY = 0.1
"""Part of the cores that other work used, from which on the page says that costs may be too high."""


def write_page(directory: Path, sweep: Sweep, runs: Sequence[Run], damaged: Sequence[str] = ()) -> Path:
    """Write ``report.html`` from the runs of ``directory``, atomically; its path.

    damaged: a line for each record that was left out. Every part comes with the command that makes it anew. Texts are
    escaped by the template; nothing is loaded from elsewhere.
    """
    page = directory / PAGE
    write_text(
        page, environment(html=True).get_template("report.html.j2").render(_content(directory, sweep, runs, damaged))
    )
    return page


def _content(directory: Path, sweep: Sweep, runs: Sequence[Run], damaged: Sequence[str]) -> dict[str, Any]:
    records = [run.record for run in runs]
    place = shlex.quote(outputs.shown(directory))
    shown, missing = list[Example](), ""
    try:
        shown = examples(runs)
    except (InputError, OSError) as error:
        missing = f"There are no example detections: {error}"
    drawn = _figures(runs)
    teachers = teachers_text(records)
    failed = [x for x in records if x.status != "finished"]
    # The verdict's: wider where a sweep is looked at several times.
    confidence = asked(directory, records).confidence
    return {
        "title": f"{sweep.grid}: {grid(sweep.grid).title}" if sweep.grid in NAMES else directory.name,
        "presets": sorted({x.preset or "none" for x in records}),
        "reproduction": bool(records) and is_reproduction(records),
        "damaged": damaged,
        "said": summary(records, directory),
        "trained": trained_on(records),
        "words": words(records),
        "pretraining": any_pretraining(runs),
        "results": _results(runs, sweep.arms, confidence),
        "confidence": f"{100 * confidence:.3g}%",
        "load": _load(records),
        "notes_on_cost": [*unknown_hours(runs), *step_spread_note(records)],
        "figures": {part: [drawn[name] for name in names if name in drawn] for part, names in PARTS.items()},
        "tables": _tables(runs, sweep, place),
        "costs": _cost_tables(runs, place),
        "teachers": _html([teachers, None if sweep.grid == TEACHER_NEEDS else split_table(records)]),
        "data": _html([None if sweep.grid == GAIN_BY_DATA else data_table(records)]),
        "examples": [_example(x) for x in shown],
        "missing": missing,
        "failed": [(arm_of(x), x) for x in failed[:MOST_ROWS]],
        "more_failed": len(failed[MOST_ROWS:]),
        "rebuild": f"python -m analysis {place}",
        "begin": training_command(directory, place),
        "resume": f"python ablations/run.py --resume {place}" if (directory / SWEEP_FILE).exists() else "",
        **_what_ran(records),
    }


def _html(tables: Iterable[TextTable | None]) -> Markup:
    """Those that there are, one below the other."""
    return Markup("").join(Markup(html_table(first_rows(table))) for table in tables if table)


def _what_ran(records: Sequence[Record]) -> dict[str, Any]:
    """Machines of the trials, and the slowest trials."""
    ended = [x for x in records if x.status != "failed" and x.device_seconds]
    return {
        "statuses": Counter(x.status for x in records).most_common(),
        "hours_name": hours_name("GPU" if on_gpu(x) else "CPU" for x in records),
        "hours": with_unit(sum(gpu_hours(x) for x in records), "h"),
        "machines": sorted({machine(x.hardware) or "unknown" for x in records}),
        "commits": sorted({x.git_commit[:12] or "unknown" for x in records}),
        "versions": sorted({f"{name} {x.versions.get(name, 'unknown')}" for x in records for name in VERSIONS}),
        "dates": sorted(x.finished for x in records if x.finished),
        "slowest": [
            (
                arm_of(x),
                x.experiment.seed,
                with_unit(gpu_hours(x), "h"),
                f"{x.step_ms:.0f}" if x.step_ms else MISSING,
                MISSING if x.data_wait is None else f"{x.data_wait:.1%}",
                MISSING if (load := other_load(x)) is None else f"{load:.0%}",
                MISSING if (spread := step_spread(x)) is None else f"{spread:.0%}",
            )
            for x in sorted(ended, key=gpu_hours, reverse=True)[:SLOWEST]
        ],
    }


def _results(runs: Sequence[Run], arms: Sequence[str], confidence: float) -> list[dict[str, Any]]:
    """Gain over the baseline, and cost, of each arm: the first table of the page. confidence: of the intervals.

    In the order of ``arms``; those of a search by their gain, and no more than MOST_RESULTS.
    """
    rows = [row for row in row_dicts(frontier(runs, confidence)) if row["gain"] is not None]
    order = {arm: i for i, arm in enumerate(arms) if not arm.startswith(SEARCHED)}
    rows.sort(key=lambda row: (order.get(row["arm"], len(order)), -row["gain"]))
    return [
        {
            "arm": with_mark(row["arm"], (row["mark"] or "").partition(":")[2].strip()),
            "ap": number(row["AP"]),
            "gain": signed(row["gain"]),
            "interval": "" if row["gain_low"] is None else interval(row["gain_low"], row["gain_high"]),
            "pairs": row["pairs"],
            "verdict": VERDICTS[verdict(row["gain_low"], row["gain_high"])],
            "cost": with_unit(row["cost"], "x"),
        }
        for row in rows[:MOST_RESULTS]
    ]


def _load(records: Sequence[Record]) -> str:
    """How much of the cores other work used, where it was much; "" where it was not, or is not known."""
    loads = [x for record in records if (x := other_load(record)) is not None]
    return f"{max(loads):.0%}" if max(loads, default=0.0) >= BUSY else ""


def _tables(runs: Sequence[Run], sweep: Sweep, place: str) -> list[tuple[Markup, str]]:
    """The table of the sweep, and the command that prints it."""
    arms = arms_shown([run.record for run in runs], sweep.arms, sweep.reference, MOST_ROWS)
    return [(Markup(html_table(main_table(runs, sweep._replace(arms=arms)))), _command(place, sweep.grid))]


def _cost_tables(runs: Sequence[Run], place: str) -> list[tuple[Markup, str]]:
    """Each table of costs, and the command that prints it."""
    tables = []
    if any(run.record.grid in TABLES for run in runs):
        frame, costs = build("table7", runs)
        # These runs may fill some of it.
        if frame["measured"].notna().any():
            tables.append((costs, "table7"))
    if len(runs) > 1:
        shown, _ = best_rows(frontier(runs), MOST_ROWS)
        hours = frontier_text(shown, pretraining=any_pretraining(runs))
        tables.append((with_notes_on_hours(hours, runs), GPU_HOURS))
        frame, text = build(TIME_TO_TARGET, runs)
        tables += [(text, TIME_TO_TARGET)] if len(frame) > 1 else []
    return [(Markup(html_table(first_rows(table))), _command(place, name)) for table, name in tables]


def _example(example: Example) -> list[tuple[str, str, str]]:
    """Alternative text, caption and source of each image."""
    captions = [
        f"{name}: {example.objects} object{'s' * (example.objects != 1)}"
        if hits is None
        else f"{name}: {hits} of {example.objects} hit"
        for name, hits in zip(example.names, example.detected, strict=True)
    ]
    sources = [_uri("png", data) for data in example.images]
    return [(f"{example.file}: {text}", text, source) for text, source in zip(captions, sources, strict=True)]


def _command(place: str, table: str) -> str:
    return f"python analysis/tables.py {place} --table {table}" if table in (*NAMES, *WITHOUT_GRID) else ""


def _figures(runs: Sequence[Run]) -> dict[str, tuple[str, str, str]]:
    """By name, what each figure shows, and its sources for a wide and for a narrow window."""
    about = {**ABOUT, "cost": WITH_PRETRAINING} if any_pretraining(runs) else ABOUT
    narrow = {name: _svg(figure) for name, figure in figures(runs, NARROW)}
    return {
        name: (about[name] + HOLLOW * has_hollow_bars(figure), _svg(figure), narrow[name])
        for name, figure in figures(runs)
    }


def _svg(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _uri("svg+xml", stream.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
