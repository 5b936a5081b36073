"""What is not the authors' but ours is named so wherever a number of it stands, if a command switches it on."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from ablations.display import SweepDisplay
from ablations.equal_time import steps_for_equal_time
from ablations.plan import trials_of
from ablations.status import show_status
from analysis.evidence.studies import comparisons, load_studies
from analysis.frame import frame
from analysis.load import Run, load_runs
from analysis.plots.style import shorten
from analysis.render import markdown
from analysis.report.html_report import write_page
from analysis.table_builders.build import build
from analysis.table_builders.sweep_table import main_table, sweep_of
from analysis.verdicts.sentences import summary
from lgd.config.experiment import split_assignment
from lgd.config.grids import NAMES, plan
from lgd.config.presets import NANO
from lgd.results.record import Record
from lgd.results.sweep_spec import SweepSpec
from tests.helpers_sweeps import whole_sweep, write_sweep

RESIDUAL = ["method.residual=true"]
MARK = "ours: residual teacher"
LGD = f"LGD ({MARK})"


def _rows(runs: Sequence[Run], directory: Path) -> dict[str, Sequence[str]]:
    """The rows of a sweep's table, by the arm."""
    table = main_table(runs, sweep_of(directory, [run.record for run in runs]))
    return {row[0]: row for row in table.rows}


@pytest.mark.parametrize(
    ("arm", "settings", "overrides", "shown"),
    [
        ("LGD", RESIDUAL, RESIDUAL, LGD),
        ("LGD", RESIDUAL, [" method.residual = true", "nonsense"], LGD),
        ("LGD", RESIDUAL, [], "LGD"),
        ("LGD", [], ["method.residual=false", "method.lr_factor=3"], "LGD"),
        ("own-label start (ours)", ["method.own_label_start=true"], ["method.lr_factor=3"], "own-label start (ours)"),
        (
            "own-label start (ours)", ["method.own_label_start=true", *RESIDUAL], RESIDUAL,
            "own-label start (ours: own-label start, residual teacher)",
        ),
        ("", RESIDUAL, RESIDUAL, f"lgd ({MARK})"),
        ("baseline", ["method.name=baseline"], RESIDUAL, "baseline"),
    ],
)  # fmt: skip
def test_the_name_of_an_arm(arm: str, settings: list[str], overrides: list[str], shown: str) -> None:
    experiment = NANO.override(dict(map(split_assignment, settings)))
    record = Record(status="finished", arm=arm, experiment=experiment, overrides=overrides)
    assert record.shown_arm == shown
    # As the variants of an arm are renamed (analysis/variants.py).
    renamed = record.model_copy(update={"arm": f"{shown} (schedule.steps=3)"})
    assert renamed.shown_arm == renamed.arm or not record.ours


@pytest.mark.parametrize("name", [x for x in NAMES if x != "noise-floor"])
def test_every_table_names_it(name: str) -> None:
    runs = whole_sweep(name, RESIDUAL)
    table = build(name, runs, resamples=0)[1]
    text = markdown(table)
    assert MARK in text
    plain = {run.record.arm for run in runs if run.record.ours}
    assert not plain & {row[0] for row in table.rows}
    # Without the setting no table is marked.
    assert not re.search(r"\bours: ", markdown(build(name, whole_sweep(name), resamples=0)[1]))


def test_the_same_numbers_under_their_marked_names(tmp_path: Path) -> None:
    plain, marked = (write_sweep(tmp_path / x, "components", y) for x, y in (("a", []), ("b", RESIDUAL)))
    expected = [row[1:] for row in _rows(plain, tmp_path / "a").values()]
    rows = _rows(marked, tmp_path / "b")
    assert [row[1:] for row in rows.values()] == expected
    assert {"baseline", LGD, f"without mapper ({MARK})", "baseline again"} <= rows.keys()
    assert list(frame([run.record for run in marked])["arm"])[:3] == ["baseline", LGD, f"without encoder ({MARK})"]


def test_the_verdict_and_what_it_rests_on(tmp_path: Path) -> None:
    records = [run.record for run in write_sweep(tmp_path, "components", RESIDUAL)]
    said = summary(records, tmp_path)
    assert said.verdicts[0].numbers.startswith(f"{LGD}: ")
    # Its equal-cost baseline, the one without imitation and the baseline's second training are all found.
    assert "the same cost spent on longer training of baseline" in said.verdicts[0].numbers
    assert any(x.startswith(f"{LGD}'s gain is ") for x in said.notes)
    assert any(x.startswith("baseline trained a second time") for x in said.notes)
    assert not re.search(r"\bLGD(?! \(ours: | residual \(ours: )", " ".join(map(str, said.verdicts)))


def test_report_and_studies(tmp_path: Path) -> None:
    directory = tmp_path / "components_nano"
    write_sweep(directory, "components", RESIDUAL, ["baseline", "LGD", "without mapper"])
    runs = load_runs(directory)
    page = write_page(directory, sweep_of(directory, [run.record for run in runs]), runs).read_text(encoding="utf-8")
    assert f"<td>{LGD}</td>" in page
    assert "<td>LGD</td>" not in page
    compared = comparisons(load_studies([directory]))
    assert LGD in set(compared["arm"])
    assert not compared["never_ahead"].isna().any()


def test_with_and_without_it_are_two_arms_of_one_table(tmp_path: Path) -> None:
    for name, overrides in (("a", []), ("b", RESIDUAL)):
        write_sweep(tmp_path / name, "components", overrides, ["baseline", "LGD"])
    _, table = build("components", load_runs(tmp_path / "a", tmp_path / "b"), resamples=0)
    rows = {row[0]: row for row in table.rows}
    assert rows["LGD"][1:3] == rows[LGD][1:3] != rows["without mapper"][1:3]


def test_a_baseline_gets_its_time(tmp_path: Path) -> None:
    """Records keep the grid's own names, by which a sweep finds its trials."""
    runs = write_sweep(tmp_path, "components", RESIDUAL, ["baseline", "LGD"])
    own = SweepSpec.read(tmp_path).whole_grid
    assert {run.record.arm for run in runs} == {"baseline", "LGD"}
    steps = steps_for_equal_time(own, NANO, 2, RESIDUAL, tmp_path, {})
    assert steps.keys() >= {"baseline at the cost of LGD"}


def test_status_and_progress_say_so(tmp_path: Path) -> None:
    write_sweep(tmp_path, "components", RESIDUAL, ["baseline", "LGD", "LGD residual (ours)"])
    spec = SweepSpec.read(tmp_path)
    records: dict[str, Record] = {}
    sweep, out = trials_of(spec, tmp_path, records), io.StringIO()
    console = Console(file=out, width=80, color_system=None)
    show_status(sweep, records, "lgd sweep resume DIR", console)
    trials = out.getvalue()[: out.getvalue().index("trials finished")]
    assert max(map(len, trials.splitlines())) <= 80
    lines = [" ".join(x.split()) for x in trials.splitlines()]
    assert any(re.fullmatch(rf"lgd-seed0 AP 30\.0, .* training \({MARK}\)", x) for x in lines)
    assert not any("ours:" in x for x in lines if x.startswith("baseline"))
    (lgd, *_) = [x for x in plan(spec.whole_grid, NANO, 1, RESIDUAL, tmp_path) if x.arm == "LGD"]
    with SweepDisplay([lgd], total=1, finished=0, max_concurrent=1, console=console) as display:
        display.ended(lgd.name, records[lgd.name])
    assert f"[1/1] LGD, seed 0 ({MARK}): AP 30.0" in out.getvalue()


def test_a_figure_cuts_a_name_and_not_its_mark() -> None:
    assert shorten(LGD, 40) == LGD
    assert shorten(f"LGD from scratch on 12.5% of images ({MARK})", 34) == "LGD from scratch on 12.5%… (ours)"
    assert shorten("baseline at the cost of LGD residual (ours)", 34) == "baseline at the cost of LGD…"
