"""``python -m analysis DIR``: rebuild a results directory's CSV, table, figures and report from its records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from analysis.load import warn_of_damaged
from analysis.render import print_table
from analysis.report import write_report
from lgd.cli import Parser, answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 when damaged records were left out; 2 with one line on stderr for wrong input."""
    return answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m analysis", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="results directory: holds trials/*/record.json")
    directory: Path = parser.parse_args(arguments).directory
    damaged: list[str] = []
    table, written = write_report(directory, damaged)
    print_table(table, Console())
    for path in written:
        print(f"wrote {path}")
    return warn_of_damaged(damaged)


if __name__ == "__main__":
    sys.exit(main())
