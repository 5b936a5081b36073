"""Tables on a terminal of 80 columns: every number whole, every short word too, and no line longer."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ablations.equal_time import with_steps
from analysis.load import Run, load_runs
from analysis.paper_tables import build
from analysis.render import LONGEST_WORD, TextTable, print_table
from analysis.sweep_table import Sweep, main_table, sweep_of
from analysis.table_names import WITHOUT_GRID
from lgd.config.extra_arms import EVERY, with_extra_arms
from lgd.config.grids import NAMES, grid, plan
from lgd.config.presets import NANO
from lgd.results.record import Contention, Pretraining, Record, Scores

WIDTH = 80

LONG_NAMES = ["method.residual=true", "data.shapes_val=6"]
"""With these settings an arm is called "LGD (ours: residual teacher)", and a table's cell is marked "nano, changed"."""

KEPT = sorted(x.parent for x in (Path(__file__).parents[3] / "benchmarks" / "results").glob("*/trials"))


def _scores(ap: float) -> Scores:
    return Scores(AP=ap, AP50=ap, AP75=ap, APs=ap, APm=ap, APl=ap, mMR=ap)


def _runs(name: str) -> list[Run]:
    """Two seeds of every arm that the grid has or can have, with numbers as wide as they come."""
    own = with_extra_arms(grid(name, "nano"), EVERY, NANO)
    steps = {arm.name: 8765 for arm in own.arms if arm.time_budget_from}
    # tf-KD is for another detector.
    arms = tuple(with_steps(arm, steps) for arm in own.arms if arm.changes.get("method.name") != "tfkd")
    own = replace(own, arms=arms)
    runs = []
    for i, trial in enumerate(plan(own, NANO, 2, LONG_NAMES, Path("/r"))):
        method, seconds = trial.experiment.method, 4_567_890.1 + 1000 * i
        teacher = Pretraining(
            fingerprint="f", backbone="timm:tf_efficientnet_lite2", steps=9, AP=30.9, reused=True,
            device_seconds={"training": seconds},
        )  # fmt: skip
        record = Record(
            status="finished", grid=name, preset="nano", arm=trial.arm, overrides=LONG_NAMES, steps=8765,
            experiment=trial.experiment, student=_scores(10 + 80 * (i % 7) / 7), student_mask=_scores(12.5),
            teacher=_scores(12.5) if method.has_teacher_ap else None, data={"train_images": 118_287},
            teacher_lead=[(1, -0.1)] if method.has_teacher_ap else [],
            pretraining=teacher if method.teacher_steps_key else None,
            seconds={"training": seconds}, device_seconds={"training": seconds}, peak_memory_mib={"host": 123_456.0},
            contention=Contention(own_cores=1, other_cores=1, cores=2),
        )  # fmt: skip
        runs.append(Run(record, trial.directory))
    return runs


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
    runs = _runs(name)
    assert len(runs) > 1
    _, table = build(name, runs, resamples=0)
    assert any(_is_number(word) for row in table.rows for cell in row[table.left :] for word in cell.split())
    _assert_fits(table)
    own = grid(name, "nano")
    arms = list(dict.fromkeys(run.record.shown_arm for run in runs))
    _assert_fits(main_table(runs, Sweep(arms, own.reference, name)))


@pytest.mark.parametrize("name", WITHOUT_GRID)
def test_a_table_of_any_training(name: str) -> None:
    runs = [run for of in ("components", "evidence") for run in _runs(of)]
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
