"""How a cost grows: the exponent, the limits, the table and the figure of ``lgd bench load``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.load_table import COLUMNS, draw, exponent, markdown, over_limits, read
from lgd.errors import InputError

SIZES = [50, 100, 200, 500, 1000, 2000]


@pytest.mark.parametrize(("power", "start"), [(1, 0.0), (1, 900.0), (2, 0.0), (2, 1e6), (1.5, 10.0)])
def test_the_exponent_is_that_of_the_growth_whatever_it_starts_from(power: float, start: float) -> None:
    found = exponent(SIZES, [start + n**power for n in SIZES])
    assert found == pytest.approx(power, abs=0.12)


def test_what_does_not_grow_has_exponent_0_and_one_size_has_none() -> None:
    assert exponent(SIZES, [2.0, 2.1, 1.9, 2.0, 2.1, 2.05]) == 0.0
    assert exponent(SIZES, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]) == 0.0
    assert exponent([50], [1.0]) is None
    assert exponent([50, 100], [1.0, 2.0]) is None


def _frame(values: dict[tuple[str, str, str], list[float]]) -> pd.DataFrame:
    rows = [
        (part, size, quantity, unit, value)
        for (part, quantity, unit), of in values.items()
        for size, value in zip(SIZES, of, strict=False)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS[:5]))
    return frame.assign(**{**dict.fromkeys(COLUMNS[5:], "x"), "git_commit": "0123456789abcdef"})


def test_what_is_quadratic_or_over_a_limit_is_said(tmp_path: Path) -> None:
    frame = _frame(
        {
            ("sweep", "sweep's CPU", "s"): [1e-3 * n for n in SIZES],
            ("sweep", "results directory", "MB"): [1e-6 * n**2 for n in SIZES],
            ("records", "table", "s"): [0.1 * n for n in SIZES],
        }
    )
    quadratic, slow = over_limits(frame)
    assert quadratic.startswith("sweep: results directory grows with the size to the power of 1.90")
    assert slow == "records: table is 200 s at 2,000, more than 10"
    text = markdown(frame)
    assert "| sweep's CPU (s)" in text
    assert f"Over the limits: {quadratic}; {slow}." in text
    assert "0123456789ab" in text
    fine = markdown(frame[frame["quantity"] == "sweep's CPU"])
    assert "No exponent is above 1.25, nothing is over its limit." in fine
    path = tmp_path / "load.csv"
    frame.to_csv(path, index=False)
    assert markdown(read(path)) == text
    assert {x.name for x in draw(frame, tmp_path / "load")} == {"load.png", "load.svg"}
    assert "size to the power of 2" in (tmp_path / "load.svg").read_text()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a CSV of these measurements"):
        read(tmp_path / "other.csv")
