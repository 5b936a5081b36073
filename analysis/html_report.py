"""``report.html``: a results directory on one self-contained page."""

from __future__ import annotations

import base64
import io
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.arms import machine
from analysis.commands import training_command
from analysis.contention import step_spread_note
from analysis.examples import Example, examples
from analysis.frame import row_dicts
from analysis.frontier import frontier, frontier_text, hours_name, on_gpu, with_notes_on_hours
from analysis.load import Run, arm_of, gpu_hours, is_reproduction, other_load, step_spread
from analysis.paper_tables import build
from analysis.plots.figures import figures
from analysis.plots.style import NARROW
from analysis.render import MISSING, html_table, interval, number, signed, with_mark, with_unit
from analysis.stats import verdict
from analysis.sweep_table import Sweep, main_table
from analysis.templating import environment
from lgd.config.grids import NAMES, TABLES, grid
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.record import Record
from lgd.results.sweep_spec import SEARCHED, SWEEP_FILE

PAGE = "report.html"

SLOWEST = 5
"""Trials listed as the slowest."""

VERSIONS = ("torch", "detectron2")

ABOUT = {
    "pareto": "AP against what the trainings took. A numbered point is an arm; filled ones are on the Pareto front.",
    "gains": "AP over the baseline of the same setting, points. Hollow bars are from one seed.",
    "cost": "What a training takes: the teacher's pre-training, the student's own, and what the method adds.",
    "curves": "AP while training, of the student and of the instructive features.",
    "loss-weights": "AP against the weights of the losses.",
    "learning-rate": "AP against the learning rate, an arm a line.",
    "schedule-length": "AP against the steps of the whole training, each length with its own decay.",
    "classes": "Difference of each class's AP between LGD and its baseline, points. Hollow bars are from one seed.",
}
"""Alternative text of each figure."""

VERDICTS = {"more": "more", "less": "less", "noise": "not to be told from noise", "": "one seed: decides nothing"}

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
    place = shlex.quote(str(directory))
    shown, missing = list[Example](), ""
    try:
        shown = examples(runs)
    except (InputError, OSError) as error:
        missing = f"There are no example detections: {error}"
    ended = [x for x in records if x.status != "failed" and x.device_seconds]
    hours = hours_name("GPU" if on_gpu(x) else "CPU" for x in records)
    return {
        "title": f"{sweep.grid}: {grid(sweep.grid).title}" if sweep.grid in NAMES else directory.name,
        "presets": sorted({x.preset or "none" for x in records}),
        "reproduction": bool(records) and is_reproduction(records),
        "damaged": damaged,
        "results": _results(runs, sweep.arms),
        "load": _load(records),
        "spread": step_spread_note(records),
        "statuses": Counter(x.status for x in records).most_common(),
        "hours_name": hours,
        "hours": with_unit(sum(gpu_hours(x) for x in records), "h"),
        "machines": sorted({machine(x.hardware) or "unknown" for x in records}),
        "commits": sorted({x.git_commit[:12] or "unknown" for x in records}),
        "versions": sorted({f"{name} {x.versions.get(name, 'unknown')}" for x in records for name in VERSIONS}),
        "dates": sorted(x.finished for x in records if x.finished),
        "tables": _tables(runs, sweep, place),
        "figures": _figures(runs),
        "examples": [_example(x) for x in shown],
        "missing": missing,
        "failed": [(arm_of(x), x) for x in records if x.status != "finished"],
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
        "rebuild": f"python -m analysis {place}",
        "begin": training_command(directory, place),
        "resume": f"python ablations/run.py --resume {place}" if (directory / SWEEP_FILE).exists() else "",
    }


def _results(runs: Sequence[Run], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Gain over the baseline, and cost, of each arm: the first table of the page.

    In the order of ``arms``; those of a search by their gain, and no more than MOST_RESULTS.
    """
    rows = [row for row in row_dicts(frontier(runs)) if row["gain"] is not None]
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
    """Each table, and the command that prints it."""
    tables = [(main_table(runs, sweep), sweep.grid)]
    if sweep.grid in TABLES and sweep.grid != "table7":
        frame, costs = build("table7", runs)
        # These runs may fill some of it, too.
        if frame["measured"].notna().any():
            tables.append((costs, "table7"))
    if len(runs) > 1:
        tables.append((with_notes_on_hours(frontier_text(frontier(runs)), runs), "gpu-hours"))
    return [(Markup(html_table(table)), _command(place, name)) for table, name in tables]


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
    return f"python analysis/tables.py {place} --table {table}" if table in NAMES or table == "gpu-hours" else ""


def _figures(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Each figure's alternative text, and its sources for a wide and for a narrow window."""
    narrow = {name: _svg(figure) for name, figure in figures(runs, NARROW)}
    return [(ABOUT[name], _svg(figure), narrow[name]) for name, figure in figures(runs)]


def _svg(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _uri("svg+xml", stream.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
