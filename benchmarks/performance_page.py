"""Puts the tables of the newest committed measurements into docs/performance.md, between its markers.

python benchmarks/performance_page.py
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from lgd.cli import Parser, exit_status
from lgd.errors import InputError
from lgd.files import write_text

PROG = "benchmarks/performance_page.py"

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

BLOCKS = {
    "speed": ("benchmarks.speed", "speed_tiny-retinanet-fp32_*.csv"),
    "changes": ("benchmarks.speed", "changes_tiny-retinanet-fp32_*.csv"),
    "waits": ("benchmarks.waits", "waits_nano-*.csv"),
    "roofline": ("benchmarks.roofline", "roofline_lgd_paper-retinanet-bf16_*.csv"),
}
"""By the name in the markers: the command whose ``--table`` prints the block, and the results it prints."""


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 written, 2 wrong input."""
    return exit_status(lambda: _run(arguments, prog))


def _run(arguments: Sequence[str] | None, prog: str) -> int:
    Parser(prog=prog, description=__doc__).parse_args(arguments)
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8")))
    print(f"wrote {PAGE}")
    return 0


def with_tables(page: str) -> str:
    """``page`` with each block as its command prints it now. Raises InputError where markers or results are missing."""
    for name, (module, pattern) in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, opened, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        # Names end with the date.
        results = sorted(RESULTS.glob(pattern), key=lambda path: path.stem.rsplit("_", 1)[-1])
        if not opened or not closed:
            raise InputError(f"{PAGE}: no block {begin.strip()} … {end}")
        if not results:
            raise InputError(f"{RESULTS}: no results {pattern}")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = importlib.import_module(module).main(["--table", str(results[-1])])
        if status:
            raise InputError(f"{results[-1]}: no table")
        page = f"{before}{begin}{printed.getvalue().strip()}\n{end}{after}"
    return page


if __name__ == "__main__":
    sys.exit(main())
