"""Thousands of records and arms: what is looked at grows with their number, what is shown does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from analysis import load as analysis_load
from analysis.load import Run, identity
from analysis.plots.arms import _arms
from analysis.plots.costs import cost_stack
from analysis.plots.verdict import gain_against_cost
from analysis.render import MOST_LISTED, listed
from analysis.report.html_report import write_page
from analysis.shown import MOST_ARMS, MOST_ROWS, MOST_SEEDS, arms_shown, seeds_shown
from analysis.table_builders.arms import arms_text
from analysis.table_builders.frontier import frontier
from analysis.table_builders.sweep_table import Sweep
from analysis.teachers import arms_never_ahead
from analysis.verdicts.questions import asked
from lgd.config.presets import NANO
from lgd.results.record import Record, Scores, _load_with_cause, load

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


class Counted(Record):
    """Counts how often anybody asks for the arm of a record."""

    asked: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "arm":
            Counted.asked += 1
        return super().__getattribute__(name)


def _record(arm: str, i: int, status: str = "finished") -> Counted:
    method = {"method.name": "baseline"} if arm == "baseline" else {"method.distill_weight": 1 + i / 1000}
    scores = Scores(AP=20 + i / 100, AP50=30.0, AP75=20.0, APs=None, APm=None, APl=None)
    return Counted(
        status=status,  # type: ignore[arg-type]
        grid="components", preset="nano", arm=arm, experiment=NANO.override(method), student=scores,
        seconds={"training": 60.0 + i}, device_seconds={"training": 60.0 + i},
        teacher_lead=[] if arm == "baseline" else [(1, -0.1)],
    )  # fmt: skip


def _search(trials: int) -> list[Counted]:
    """The records of a search, whose trials are arms of their own."""
    return [_record("baseline", 0), *(_record(f"search-{i:03}", i) for i in range(trials))]


def _arms_of(records: list[Counted]) -> list[str]:
    return [record.arm for record in records]


@pytest.mark.parametrize(
    "work",
    [
        lambda records, runs: arms_text(records, _arms_of(records), "baseline"),
        lambda records, runs: frontier(runs),
        lambda records, runs: gain_against_cost(runs),
        lambda records, runs: cost_stack(runs),
        lambda records, runs: asked(Path("nowhere"), records),
        lambda records, runs: arms_never_ahead(records),
        lambda records, runs: arms_shown(records, _arms_of(records), "baseline"),
    ],
    ids=["table", "frontier", "gain", "cost", "questions", "teachers", "shown"],
)
def test_a_record_is_looked_at_as_often_among_many_as_among_few(
    work: Callable[[list[Counted], list[Run]], object],
) -> None:
    often = []
    for trials in (80, 320):
        records = _search(trials)
        runs = [Run(record, Path(f"run-{i}")) for i, record in enumerate(records)]
        Counted.asked = 0
        work(records, runs)
        often.append(Counted.asked / len(records))
    assert 0 < often[1] <= 1.2 * often[0], often


def test_the_front_is_what_no_other_arm_beats() -> None:
    """Against its definition, with equal APs and equal hours among the arms."""
    records = _search(1)
    for i in range(60):
        hours, ap = float(1 + i * 7 % 9), float(20 + i * 5 % 7)
        scores = Scores(AP=ap, AP50=ap, AP75=ap, APs=None, APm=None, APl=None)
        update = {"student": scores, "device_seconds": {"training": 3600 * hours}}
        records.append(_record(f"search-{i + 1:03}", i + 1).model_copy(update=update))
    table = frontier([Run(record, Path(f"run-{i}")) for i, record in enumerate(records)])
    points = list(zip(table["AP"], table["gpu_hours"], strict=True))
    wanted = [not any(a >= ap and h <= hours and (a, h) != (ap, hours) for a, h in points) for ap, hours in points]
    assert list(table["front"]) == wanted
    assert 0 < sum(wanted) < len(wanted)


@pytest.mark.slow
def test_the_page_and_the_figures_of_a_large_search_show_the_best_arms(tmp_path: Path) -> None:
    records = [*_search(MOST_ROWS + 50), *(_record(f"search-9{i:03}", i, "failed") for i in range(MOST_ROWS + 1))]
    runs = [Run(record, tmp_path / str(i)) for i, record in enumerate(records)]
    arms = list(dict.fromkeys(_arms_of(records)))
    few = arms_shown(records, arms, "baseline")
    assert (len(few), few[0], few[-1]) == (MOST_ARMS, "baseline", f"search-{MOST_ROWS + 49:03}")
    figure = _arms(records, few, "baseline")
    assert figure.get_size_inches()[1] < 40
    page = write_page(tmp_path, Sweep(arms, "baseline", "components"), runs).read_text()
    # Arms, hours, time to target, teachers, what did not finish.
    assert page.count("<tr>") < 6 * MOST_ROWS
    assert f"And {1} more; records.csv has every trial." in page
    assert "more trials did not finish" in page
    assert len(page) < 3e6


def test_of_many_seeds_some_are_drawn() -> None:
    drawn = seeds_shown(range(5000))
    assert (len(drawn), drawn[0], drawn[-1]) == (MOST_SEEDS, 0, 4999)
    assert len(set(drawn)) == MOST_SEEDS
    assert seeds_shown([3, 1]) == [3, 1]
    assert listed([str(i) for i in range(MOST_LISTED + 5)]).endswith(f"{MOST_LISTED - 1} and 5 more")


def test_an_experiment_is_identified_once_for_all_its_seeds() -> None:
    analysis_load._identity.cache_clear()
    found = {identity(NANO.override({"seed": seed})) for seed in range(50)}
    assert len(found) == 1
    assert analysis_load._identity.cache_info().misses == 1


def test_a_record_is_the_same_read_at_once_or_for_its_cause() -> None:
    """Of the committed ones, among which are those of every schema."""
    paths = sorted(RESULTS.glob("*/trials/*/record.json"))[::12]
    assert len(paths) > 10
    for path in paths:
        assert load(path).model_dump_json() == _load_with_cause(path).model_dump_json()
