from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.report.write import write_outputs
from analysis.table_builders.sweep_table import Sweep, sweep_of
from lgd.errors import InputError
from lgd.results.sweep_spec import SweepEnd, SweepSpec

from .conftest import MakeRecord


@pytest.fixture
def results(tmp_path: Path, make_record: MakeRecord) -> Path:
    for arm, ap in (("LGD", 22.0), ("baseline", 20.0), ("a variant", 19.0)):
        make_record(arm, 0, ap, 10.0).save(tmp_path / "trials" / arm)
    return tmp_path


@pytest.mark.slow
def test_writes_everything(results: Path) -> None:
    paths = write_outputs(results, Sweep(["baseline", "LGD"], "baseline"))
    assert [p.name for p in paths][:4] == ["records.csv", "table.md", "arms.png", "arms.svg"]
    assert {"gains.svg", "pareto.png", "classes.svg"} <= {p.name for p in paths}
    assert len(pd.read_csv(paths[0])) == 3
    assert "| LGD      |       1 | 22.0 |" in paths[1].read_text(encoding="utf-8")
    assert {p.name for p in results.iterdir()} == {"trials", *(p.name for p in paths)}


@pytest.mark.slow
def test_rewriting_changes_nothing(results: Path) -> None:
    first = [p.read_bytes() for p in write_outputs(results, Sweep(["baseline", "LGD"], "baseline"))]
    assert [p.read_bytes() for p in write_outputs(results, Sweep(["baseline", "LGD"], "baseline"))] == first


def test_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trials"):
        write_outputs(tmp_path, Sweep(["baseline"], "baseline"))
    assert list(tmp_path.iterdir()) == []


def test_order_without_a_sweep(results: Path, make_record: MakeRecord) -> None:
    records = [make_record(arm) for arm in ("LGD", "a variant", "baseline", "LGD")]
    assert sweep_of(results, records) == Sweep(["baseline", "LGD", "a variant"], "baseline")
    assert sweep_of(results, records[:2]) == Sweep(["LGD", "a variant"], "LGD")


def _write_sweep(directory: Path, **changes: Any) -> None:
    values = {"grid": "components", "preset": "nano", "overrides": (), "arms": ("LGD",), "seeds": 1, **changes}
    SweepSpec.model_validate(values).write(directory)


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({"arms": ("LGD", "baseline"), "reference": "LGD"}, Sweep(["LGD", "baseline"], "LGD", "components")),
        ({"reference": "baseline"}, Sweep(["LGD"], "baseline", "components")),
        ({"ended": None, "grid": "main"}, Sweep(["LGD"], "", "main")),
        (
            {"grid": "g", "ended": SweepEnd(why="time is over", not_run=("LGD, seed 1",))},
            Sweep(["LGD"], "", "g", ("Not run (time is over): LGD, seed 1.",)),
        ),
        (
            {
                "ended": SweepEnd(
                    why="",
                    not_run=("LGD, seed 1 (checkpoint after step 5)", "A, seed 0", "LGD, seed 2", "3 samples"),
                )
            },
            Sweep(
                ["LGD"],
                "",
                "components",
                (
                    "Not run (no record): LGD, seeds 1 (checkpoint after step 5), 2.",
                    "Not run (no record): A, seed 0.",
                    "Not run (no record): 3 samples.",
                ),
            ),
        ),
    ],
)
def test_what_a_sweep_json_says(tmp_path: Path, sweep: dict[str, Any], expected: Sweep) -> None:
    _write_sweep(tmp_path, **sweep)
    assert sweep_of(tmp_path, []) == expected


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "{}", '{"arms": []}', '{"arms": [1]}', '{"arms": ["a"], "reference": 1}', "\xff"),
        *('{"arms": ["a"], "ended": 3}', '{"arms": ["a"], "ended": {"not_run": ["a"]}}'),
    ],
)
def test_broken_sweep_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sweep.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as refused:
        sweep_of(tmp_path, [])
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.slow
def test_command(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_sweep(results, arms=("LGD", "baseline"), reference="LGD")
    assert main([str(results)]) == 0
    shown = capsys.readouterr().out
    assert f"wrote {results / 'table.md'}" in shown
    rows = (results / "table.md").read_text(encoding="utf-8").splitlines()
    # The verdict stands above the table.
    assert rows[0].startswith("LGD: ")
    cells = [row.split("|")[1].strip() for row in rows if row.startswith("|")]
    assert cells[2:4] == ["LGD", "baseline"]
    assert any("difference to LGD" in row for row in rows)


@pytest.mark.parametrize("broken", [False, True])
def test_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: bool) -> None:
    directory = tmp_path if broken else tmp_path / "nowhere"
    if broken:
        (tmp_path / "trials" / "x").mkdir(parents=True)
        (tmp_path / "trials" / "x" / "record.json").write_text("{")
    assert main([str(directory)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {directory}")
    assert captured.err.count("\n") == 1


def test_command_without_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no trials" in capsys.readouterr().err
