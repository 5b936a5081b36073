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

from analysis.arms import machine
from analysis.examples import Example, examples
from analysis.frontier import frontier, frontier_text, with_evaluation_note
from analysis.load import Run, arm_of, gpu_hours, is_reproduction
from analysis.paper_tables import build
from analysis.plots.figures import figures
from analysis.render import MISSING, html_table, with_unit
from analysis.sweep_table import Sweep, main_table, training_command
from analysis.templating import environment
from lgd.config.grids import NAMES, TABLES, grid
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.sweep_spec import SWEEP_FILE

PAGE = "report.html"

SLOWEST = 5
"""Trials listed as the slowest."""

VERSIONS = ("torch", "detectron2")

ABOUT = {
    "pareto": "AP against GPU-hours. A numbered point is an arm; filled ones are on the Pareto front.",
    "gains": "AP over the baseline of the same setting, points.",
    "cost": "GPU-hours of a training: the teacher's pre-training, the student's own, and what the method adds.",
    "curves": "AP while training, of the student and of the instructive features.",
    "loss-weights": "AP against the weights of the losses.",
    "classes": "Difference of each class's AP between LGD and its baseline, points.",
}
"""What each figure shows, for those who cannot see it too."""


def write_page(directory: Path, sweep: Sweep, runs: Sequence[Run], damaged: Sequence[str] = ()) -> Path:
    """Write ``report.html`` from the runs of ``directory``, atomically; its path.

    damaged: a line for each record that was left out. Every part comes with the command that makes it anew. Texts are
    escaped by the template; nothing is loaded from elsewhere.
    """
    page = directory / PAGE
    write_text(page, environment(html=True).get_template("report.html.j2").render(_content(directory, sweep, runs)))
    return page


def _content(directory: Path, sweep: Sweep, runs: Sequence[Run]) -> dict[str, Any]:
    records = [run.record for run in runs]
    place = shlex.quote(str(directory))
    tables = [(html_table(main_table(runs, sweep)), _command(place, sweep.grid))]
    # A table of the paper that these runs fill, too.
    if sweep.grid in TABLES and sweep.grid != "table7":
        frame, costs = build("table7", runs)
        # These runs may fill some of it, too.
        if frame["measured"].notna().any():
            tables.append((html_table(costs), _command(place, "table7")))
    if len(records) > 1:
        tables.append(
            (html_table(with_evaluation_note(frontier_text(frontier(runs)), runs)), _command(place, "gpu-hours"))
        )
    shown, missing = list[Example](), ""
    try:
        shown = examples(runs)
    except (InputError, OSError) as error:
        missing = f"There are no example detections: {error}"
    ended = [x for x in records if x.status != "failed" and x.device_seconds]
    return {
        "title": f"{sweep.grid}: {grid(sweep.grid).title}" if sweep.grid in NAMES else directory.name,
        "presets": sorted({x.preset or "none" for x in records}),
        "reproduction": bool(records) and is_reproduction(records),
        "statuses": Counter(x.status for x in records).most_common(),
        "hours": with_unit(sum(gpu_hours(x) for x in records), "h"),
        "machines": sorted({machine(x.hardware) or "unknown" for x in records}),
        "commits": sorted({x.git_commit[:12] or "unknown" for x in records}),
        "versions": sorted({f"{name} {x.versions.get(name, 'unknown')}" for x in records for name in VERSIONS}),
        "dates": sorted(x.finished for x in records if x.finished),
        "tables": [(Markup(table), command) for table, command in tables],
        "figures": [(name, ABOUT[name], svg) for name, svg in _figures(runs)],
        "examples": [(x.file, list(zip(x.names, (_uri("png", y) for y in x.pictures), strict=True))) for x in shown],
        "missing": missing,
        "failed": [(arm_of(x), x) for x in records if x.status != "finished"],
        "slowest": [
            (
                arm_of(x),
                x.experiment.seed,
                with_unit(gpu_hours(x), "h"),
                f"{x.step_ms:.0f}" if x.step_ms else MISSING,
                MISSING if x.data_wait is None else f"{x.data_wait:.1%}",
            )
            for x in sorted(ended, key=gpu_hours, reverse=True)[:SLOWEST]
        ],
        "rebuild": f"python -m analysis {place}",
        "begin": training_command(directory, place),
        "resume": f"python ablations/run.py --resume {place}" if (directory / SWEEP_FILE).exists() else "",
    }


def _command(place: str, table: str) -> str:
    return f"python analysis/tables.py {place} --table {table}" if table in NAMES or table == "gpu-hours" else ""


def _figures(runs: Sequence[Run]) -> list[tuple[str, str]]:
    found = []
    for name, figure in figures(runs):
        FigureCanvasAgg(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        found.append((name, _uri("svg+xml", stream.getvalue())))
    return found


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
