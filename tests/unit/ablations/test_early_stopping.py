"""Which trials ASHA compares, and by what, from the reports that trials send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from ablations.search.early_stopping import NO_CONTROLLER, ResumableASHA
from ablations.search.optuna_search import Search
from tests.helpers_search import LGD_NANO, base_of, driver, end, interrupt

STEPS, EVERY = 160, 20
RUNGS = (40, 80, 160)


def _trial(name: str) -> Any:
    return SimpleNamespace(trial_id=f"id of {name}", config={"name": name})


def _reports(slope: float, period: int, first: int = 1) -> Iterator[dict[str, Any]]:
    """As a training sends them: every so many steps, before the evaluation of the same step; then after that."""
    known: dict[str, Any] = {}
    for step in range(first, STEPS + 1):
        if step % period == 0:
            yield {"step": step, **known}
        if step % EVERY == 0:
            known = {"AP": slope * step, "evaluated_step": step}
            yield {"step": step, **known}


def _train(asha: ResumableASHA, name: str, reports: Iterator[dict[str, Any]]) -> int:
    """The step at which the scheduler ends the trial."""
    trial = _trial(name)
    asha.on_trial_add(NO_CONTROLLER, trial)
    for report in reports:
        if asha.on_trial_result(NO_CONTROLLER, trial, report) == TrialScheduler.STOP:
            return int(report["step"])
    return STEPS


def _rungs(asha: ResumableASHA) -> dict[int, dict[str, float]]:
    return {int(milestone): dict(recorded) for milestone, recorded in asha._brackets[0]._rungs}


@pytest.mark.parametrize("period", [1, 3, 7, 40])
def test_trials_are_compared_at_the_same_step(period: int) -> None:
    """However often they report: one with every 40 steps reports at a rung before it evaluates there."""
    asha = ResumableASHA(STEPS, [], {})
    ended = {name: _train(asha, name, _reports(0.1, n)) for name, n in (("a", 13), ("b", period))}
    assert ended == {"a": STEPS, "b": STEPS}
    assert {step: set(found.values()) for step, found in _rungs(asha).items()} == {x: {0.1 * x} for x in RUNGS}


def test_what_falls_behind_is_ended_at_the_first_rung() -> None:
    asha = ResumableASHA(STEPS, [], {})
    assert [_train(asha, name, _reports(x, 7)) for name, x in (("a", 0.2), ("b", 0.1), ("c", 0.3))] == [160, 40, 160]


def test_reports_without_an_evaluation_are_compared_with_nothing() -> None:
    asha = ResumableASHA(STEPS, [{40: 9.0}], {})
    assert _train(asha, "a", iter([{"step": x} for x in range(1, STEPS + 1)])) == STEPS
    assert _train(asha, "a", iter([{"stopped": 50}])) == STEPS


CURVES: list[dict[int, float]] = [{20: 1.0, 40: 4.0, 60: 6.0, 80: 8.0}, {20: 1.0, 40: 2.0}]


def test_a_search_that_goes_on_compares_with_what_ended_before() -> None:
    asha = ResumableASHA(STEPS, CURVES, {})
    assert {step: sorted(found.values()) for step, found in _rungs(asha).items()} == {
        40: [2.0, 4.0],
        80: [8.0],
        160: [],
    }
    # The median of the first two is 3.
    assert _train(asha, "low", _reports(2.9 / 40, 7)) == 40
    # What ended is no trial of Tune's.
    assert asha._trial_info.keys() == {"id of low"}


def test_a_trial_that_goes_on_is_where_it_was() -> None:
    """Past the first rung, where it is not judged again, nor counts with what it has by now."""
    asha = ResumableASHA(STEPS, CURVES, {"on": {20: 0.5, 40: 1.0}})
    after = (x for x in _reports(0.09, 7, first=50) if x["step"] < 80)
    known = {"AP": 1.0, "evaluated_step": 40}
    assert _train(asha, "on", iter([{"step": 50, **known}, *({**known, **x} for x in after)])) == STEPS
    assert sorted(_rungs(asha)[40].values()) == [1.0, 2.0, 4.0]
    late = ResumableASHA(STEPS, [], {})
    # Its evaluations before were lost: it has none at the first rung.
    _train(late, "x", iter([{"step": 90, "AP": 5.0, "evaluated_step": 80}] * 3))
    assert _rungs(late) == {40: {}, 80: {"id of x": 5.0}, 160: {}}


@pytest.mark.parametrize("kind", ["finished", "stopped", "diverged"])
def test_the_rungs_are_filled_from_the_results_directory(kind: str, tmp_path: Path) -> None:
    base = LGD_NANO.override({"schedule.steps": STEPS, "schedule.warmup_steps": 2})
    search = Search(base, tmp_path, samples=4, early_stop=True)
    with driver(search) as searcher:
        end(search, searcher.suggest("1"), kind, CURVES[0])
        unfinished = searcher.suggest("2")["name"]
        interrupt(search, unfinished, CURVES[1])
    with search.opened(base_of(search)) as (_, scheduler, left):
        assert left == 3
        assert isinstance(scheduler, ResumableASHA)
        assert _values(scheduler) == {40: [4.0], 80: [8.0], 160: []}
        scheduler.on_trial_add(NO_CONTROLLER, _trial(unfinished))
        assert _values(scheduler) == {40: [2.0, 4.0], 80: [8.0], 160: []}


def _values(asha: ResumableASHA) -> Mapping[int, list[float]]:
    return {step: sorted(found.values()) for step, found in _rungs(asha).items()}
