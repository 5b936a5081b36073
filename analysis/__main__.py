"""Rebuild a results directory's CSV, table, figures and report from its records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lgd.cli import Parser, examples, exit_status
from lgd.storage.outputs import fetch_records, input_option, publish_own
from lgd.storage.outputs import shown as named

PROG = "python -m analysis"


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0; 1 when damaged records were left out; 2 with one line on stderr for wrong input."""
    return exit_status(lambda: _run(arguments, prog))


def parser(prog: str = PROG) -> Parser:
    found = Parser(prog=prog, description=__doc__, epilog=examples(prog, "results/components-tiny"))
    what = "results directory, or its URL: holds trials/*/record.json"
    found.add_argument("directory", type=input_option, metavar="DIR", help=what)
    return found


def _run(arguments: Sequence[str] | None, prog: str) -> int:
    directory: Path = parser(prog).parse_args(arguments).directory

    # Figures take seconds to load: help and wrong options do without.
    from rich.console import Console

    from analysis.load import warn_of_damaged
    from analysis.render import print_table
    from analysis.report.write import write_report

    fetch_records(directory, must_exist=True)
    damaged: list[str] = []
    shown = write_report(directory, damaged)
    print_table(shown.table, Console())
    for line in shown.said.lines:
        print(line)
    publish_own(directory)
    for path in shown.written:
        print(f"wrote {named(path)}")
    return warn_of_damaged(damaged)


if __name__ == "__main__":
    sys.exit(main())
