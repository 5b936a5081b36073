"""Tables on a terminal of 80 columns: every number whole, every short word too, and no line longer."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from analysis.load import load_runs
from analysis.render import LONGEST_WORD, TextTable, print_table
from analysis.table_builders.build import build
from analysis.table_builders.names import WITHOUT_GRID
from analysis.table_builders.sweep_table import Sweep, main_table, sweep_of
from lgd.config.grids import NAMES, grid
from tests.helpers_sweeps import whole_sweep

WIDTH = 80

LONG_NAMES = ["method.residual=true", "data.shapes_val=6"]
"""With these settings an arm is called "LGD (ours: residual teacher)", and a table's cell is marked "nano, changed"."""

KEPT = sorted(x.parent for x in (Path(__file__).parents[3] / "benchmarks" / "results").glob("*/trials"))


def _printed(table: TextTable) -> list[str]:
    stream = io.StringIO()
    print_table(table, Console(file=stream, width=WIDTH))
    return stream.getvalue().splitlines()


def _is_number(word: str) -> bool:
    try:
        float(word.strip("[](),x%").replace(",", ""))
    except ValueError:
        return False
    return True


def _assert_fits(table: TextTable) -> None:
    lines = _printed(table)
    assert max(map(len, lines)) <= WIDTH
    first_note = next((i for i, x in enumerate(lines) if x.startswith("• ")), len(lines))
    said = re.search(r"Left out for want of room: (.*) \(they are in table.md\)", " ".join(map(str.strip, lines)))
    left_out = said[1].split(", ") if said else []
    assert set(left_out) < set(table.header[table.left :])
    shown = [i for i, name in enumerate(table.header) if name not in left_out]
    words = [word for row in table.rows for i in shown for word in row[i].split()]
    wanted = Counter(x for x in words if _is_number(x) or len(x) <= LONGEST_WORD)
    missing = wanted - Counter(word for line in lines[:first_note] for word in line.split())
    assert not missing, f"{missing} in\n" + "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_a_grid(name: str) -> None:
    runs = whole_sweep(name, LONG_NAMES)
    assert len(runs) > 1
    _, table = build(name, runs, resamples=0)
    assert any(_is_number(word) for row in table.rows for cell in row[table.left :] for word in cell.split())
    _assert_fits(table)
    own = grid(name, "nano")
    arms = list(dict.fromkeys(run.record.shown_arm for run in runs))
    _assert_fits(main_table(runs, Sweep(arms, own.reference, name)))


@pytest.mark.parametrize("name", WITHOUT_GRID)
def test_a_table_of_any_training(name: str) -> None:
    runs = [run for of in ("components", "evidence") for run in whole_sweep(of, LONG_NAMES)]
    _, table = build(name, runs, resamples=0)
    assert table.rows
    _assert_fits(table)


@pytest.mark.parametrize("directory", KEPT, ids=lambda x: x.name)
def test_the_table_of_a_kept_study(directory: Path) -> None:
    runs = load_runs(directory)
    _assert_fits(main_table(runs, sweep_of(directory, [run.record for run in runs])))


def test_a_table_without_minor_columns_loses_its_last_ones() -> None:
    """Rather than a digit of the others."""
    names = [f"n{i}" for i in range(12)]
    lines = _printed(TextTable("", names, [["12345678"] * len(names)]))
    assert lines[2].split() == ["12345678"] * 9
    assert lines[3] == "• Left out for want of room: n11, n10, n9 (they are in table.md)."
