"""``python -m analysis DIR``: rebuild a results directory's CSV, table, figures and report from its records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from analysis.html_report import write_page
from analysis.load import load_runs
from analysis.report import main_table, order, write_outputs
from analysis.tables import print_shown
from lgd.cli import Parser, answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr when the directory is no results directory."""
    return answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m analysis", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="results directory: holds trials/*/record.json")
    directory: Path = parser.parse_args(arguments).directory
    runs = load_runs(directory)
    sweep = order(directory, [run.record for run in runs])
    written = [*write_outputs(directory, sweep), write_page(directory, sweep)]
    print_shown(main_table(runs, sweep), Console())
    for path in written:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
