"""Print a table from recorded runs, as Markdown, LaTeX, CSV or HTML."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __spec__:
    # Run as a file, Python looks for modules in this directory, not in the repository's root.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from analysis.table_builders.names import WITHOUT_GRID
    from lgd.cli import Parser, examples, exit_status, without_gc
    from lgd.config.grids import NAMES
    from lgd.errors import InputError
    from lgd.storage.outputs import fetch_records, input_option

FORMATS = ("md", "latex", "csv", "html")

PROG = "analysis/tables.py"

EXAMPLES = (
    "results/teacher-based-paper --table teacher-based --format latex",
    "results/* --table gpu-hours",
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0; 1 when damaged records were left out; 2 with one line on stderr for wrong input."""
    with without_gc():
        return exit_status(lambda: _run(arguments, prog))


def parser(prog: str = PROG) -> Parser:
    names = (*NAMES, *WITHOUT_GRID)
    found = Parser(prog=prog, description=__doc__, epilog=examples(prog, *EXAMPLES))
    what = "results directories, or their URLs; they merge"
    found.add_argument("results", nargs="+", type=input_option, metavar="RESULTS", help=what)
    found.add_argument("--table", required=True, choices=names, metavar="NAME", help=", ".join(names))
    found.add_argument("--format", choices=FORMATS, default="md", help="default: md")
    found.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="draws of the images (default: 1000; 0: no bootstrap)",
    )
    return found


def _run(arguments: Sequence[str] | None, prog: str) -> int:
    options = parser(prog).parse_args(arguments)
    if options.resamples < 0:
        raise InputError(f"--resamples {options.resamples}: a number from 0")

    # pandas takes a second to load: help and wrong options do without.
    from analysis.load import load_runs, warn_of_damaged
    from analysis.table_builders.build import RENDERERS, build

    for directory in options.results:
        fetch_records(directory, must_exist=True)
    damaged: list[str] = []
    runs = load_runs(*options.results, damaged=damaged)
    if not runs:
        if damaged:
            raise InputError(damaged[0])
        raise InputError(f"no record.json in {', '.join(map(str, options.results))}, nor in trials/* or * there")
    frame, text = build(options.table, runs, resamples=options.resamples)
    print(RENDERERS[options.format](frame, text), end="")
    return warn_of_damaged(damaged)


if __name__ == "__main__":
    sys.exit(main())
