"""Puts the newest committed measurements into docs/{performance,cost,method,load,drill,tables}.md, between markers.

python benchmarks/performance_page.py
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.evidence.first_run import NOTE
from benchmarks import load_table, paper_hours, roofline_targets, speed_table
from benchmarks.gpu_results import newer_sessions, newest_session, sessions
from benchmarks.gpu_results import page as session_page
from benchmarks.timer_spec import OURS
from lgd.cli import Parser, exit_status
from lgd.errors import InputError
from lgd.files import write_text

PROG = "benchmarks/performance_page.py"

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PAGE, COST_PAGE, METHOD_PAGE = DOCS / "performance.md", DOCS / "cost.md", DOCS / "method.md"
LOAD_PAGE, DRILL_PAGE, TABLES_PAGE = DOCS / "load.md", DOCS / "drill.md", DOCS / "tables.md"

NO_LOAD = "No measurement is committed yet."
NO_SESSION = "No session on a GPU is committed yet."

WITHOUT_FAST_LOSSES = f"{OURS} without fast losses"

METHOD_BLOCKS = {"label-signal": ("benchmarks.label_signal", "label-signal_*.csv")}

DRILL_BLOCKS = {
    "drill": ("ablations.drill.command", "drill_*.csv"),
    "drill-bucket": ("ablations.drill.command", "drill-bucket_*.csv"),
}

BLOCKS = {
    "demo": ("benchmarks.demo", "demo_*.csv"),
    "speed": ("benchmarks.speed", "speed_tiny-retinanet-fp32_*.csv"),
    "changes": ("benchmarks.speed", "changes_tiny-retinanet-fp32_*.csv"),
    "waits": ("benchmarks.waits", "waits_nano-*.csv"),
    "roofline": ("benchmarks.roofline", "roofline_lgd_paper-retinanet-bf16_*.csv"),
}
"""By the name in the markers, here for docs/performance.md and above for docs/method.md and docs/drill.md: the command
whose ``--table`` prints the block, and the results it prints."""


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 written, 2 wrong input."""
    return exit_status(lambda: _run(arguments, prog))


def _run(arguments: Sequence[str] | None, prog: str) -> int:
    Parser(prog=prog, description=__doc__).parse_args(arguments)
    page = with_roofline_targets(with_fast_losses(with_tables(PAGE.read_text(encoding="utf-8"))))
    write_text(PAGE, with_session(page, PAGE, details=True))
    write_text(COST_PAGE, with_session(COST_PAGE.read_text(encoding="utf-8"), COST_PAGE))
    method = with_tables(METHOD_PAGE.read_text(encoding="utf-8"), METHOD_BLOCKS, METHOD_PAGE)
    write_text(METHOD_PAGE, method)
    write_text(LOAD_PAGE, with_load(LOAD_PAGE.read_text(encoding="utf-8")))
    write_text(DRILL_PAGE, with_tables(DRILL_PAGE.read_text(encoding="utf-8"), DRILL_BLOCKS, DRILL_PAGE))
    write_text(TABLES_PAGE, with_paper_hours(TABLES_PAGE.read_text(encoding="utf-8")))
    print(f"wrote {PAGE}, {COST_PAGE}, {METHOD_PAGE}, {LOAD_PAGE}, {DRILL_PAGE}, {TABLES_PAGE}")
    return 0


def with_session(page: str, path: Path, *, details: bool = False) -> str:
    """``page`` with what the newest committed session on a GPU measured, or that there is none.

    details: all sessions, the newest first, with the tables of their measurements; else the newest without a note, and
    which are newer.
    """
    newest = newest_session(RESULTS)
    parts = [session_page(newest), *map(_not_shown, newer_sessions(RESULTS))] if newest else []
    if details:
        parts = [x for one in sessions(RESULTS) for x in (f"### {one.name}\n\n{session_page(one)}", *_details(one))]
    return _with_block(page, "gpu", "\n\n".join(x.strip() for x in parts) or NO_SESSION, path)


def with_paper_hours(page: str) -> str:
    """``page`` with the hours of the paper's grids by the newest session, or that there is none."""
    newest = newest_session(RESULTS)
    return _with_block(page, "paper-hours", paper_hours.markdown(newest) if newest else NO_SESSION, TABLES_PAGE)


def _not_shown(session: Path) -> str:
    """That a session with a note is left out, and the first thing that its note says."""
    _, _, note = (session / NOTE).read_text(encoding="utf-8").partition("\n- ")
    first = " ".join(note.partition("\n- ")[0].split()).partition(". ")[0].rstrip(".")
    tables = f"[{session.name}](performance.md#{session.name})"
    return f"Newer, but not shown here, since its numbers have to be read with a note: {tables}. {first}."


def newest_load() -> dict[str, Path]:
    """The newest measurement of each part of ``lgd bench load``, by part."""
    newest: dict[str, Path] = {}
    # Names end with the date.
    for path in sorted(RESULTS.glob("load_*.csv"), key=lambda path: (path.stem.rsplit("_", 1)[-1], path.stem)):
        newest[path.stem.split("_")[1]] = path
    return newest


def with_load(page: str) -> str:
    """``page`` with the newest measurement of each part of ``lgd bench load``, one after the other."""
    newest = newest_load()
    if not newest:
        return _with_block(page, "load", NO_LOAD, LOAD_PAGE)
    text = "\n\n".join(load_table.markdown(load_table.read(path)).strip() for path in newest.values())
    return _with_block(page, "load", text, LOAD_PAGE)


def with_fast_losses(page: str) -> str:
    """``page`` with the newest timing of each detector's LGD step with our losses, and with detectron2's."""
    from analysis.render import pipe_table

    newest: dict[str, tuple[Path, Any]] = {}
    for path in sorted(RESULTS.glob("changes_*.csv"), key=lambda path: (path.stem.rsplit("_", 1)[-1], path.stem)):
        frame = speed_table.read(path)
        newest[str(frame["detector"].iloc[0])] = path, frame
    rows, notes = [], []
    for detector, (path, frame) in sorted(newest.items()):
        ms = frame.pivot_table(index="round", columns="side", values="median_ms")
        if not {OURS, WITHOUT_FAST_LOSSES} <= set(ms.columns):
            continue
        ratio = ms[WITHOUT_FAST_LOSSES] / ms[OURS]
        rows.append(
            [
                detector,
                f"{ms[WITHOUT_FAST_LOSSES].median():.0f}",
                f"{ms[OURS].median():.0f}",
                f"{ratio.median():.2f}x [{ratio.min():.2f}, {ratio.max():.2f}]",
            ]
        )
        first = frame.iloc[0]
        notes.append(
            f"- {detector}: {first['backbone']}, {first['batch']} images of {first['height']} x {first['width']}"
            f" pixels, {first['cpu']}, {len(ms)} rounds, commit {first['git_commit'][:12]} (`{path.name}`)."
        )
    if not rows:
        raise InputError(f"{RESULTS}: no results changes_*.csv with and without fast losses")
    header = ["detector", "ms with detectron2's losses", "ms with ours", "speed"]
    table = pipe_table(header, rows)
    return _with_block(page, "fast-losses", "\n".join([table, "", *notes]), PAGE)


def with_roofline_targets(page: str) -> str:
    """``page`` with what LGD's targets would need of a GPU."""
    return _with_block(page, "roofline-targets", roofline_targets.markdown(RESULTS), PAGE)


def _details(session: Path) -> list[str]:
    """A heading and the table of each measurement that has one."""
    return [
        f"#### {table.parent.name}\n\n{table.read_text(encoding='utf-8')}"
        for name in ("speed", "breakdown")
        for table in sorted(session.glob(f"*/{name}.md"))
    ]


def with_tables(page: str, blocks: Mapping[str, tuple[str, str]] = BLOCKS, path: Path = PAGE) -> str:
    """``page`` with each block as its command prints it now. Raises InputError where markers or results are missing."""
    for name, (module, pattern) in blocks.items():
        # Names end with the date.
        results = sorted(RESULTS.glob(pattern), key=lambda path: path.stem.rsplit("_", 1)[-1])
        if not results:
            raise InputError(f"{RESULTS}: no results {pattern}")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = importlib.import_module(module).main(["--table", str(results[-1])])
        if status:
            raise InputError(f"{results[-1]}: no table")
        page = _with_block(page, name, printed.getvalue().strip(), path)
    return page


def begin_marker(name: str) -> str:
    """The line above a block: its name, and the command that writes it."""
    return f"<!-- {name}:begin: python {PROG} -->"


def _with_block(page: str, name: str, text: str, path: Path) -> str:
    """``page`` with ``text`` between the block's markers. Raises InputError, naming ``path``, without the markers."""
    begin, end = f"{begin_marker(name)}\n", f"<!-- {name}:end -->"
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise InputError(f"{path}: no block {begin.strip()} … {end}")
    return f"{before}{begin}{text}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
