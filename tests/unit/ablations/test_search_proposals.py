"""What Optuna's study is told of a search's trials, and what is proposed after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from ablations.search.optuna_search import Search, quiet_optuna
from ablations.search.search_space import objectives
from lgd.results.record import load
from tests.helpers_search import LGD_NANO, driver, end, interrupt, progress

ONE, TWO = ("AP",), ("AP", "gpu_hours")


def _trials(search: Search) -> list[FrozenTrial]:
    return search.study().get_trials(deepcopy=False)


def _first(search: Search) -> FrozenTrial:
    return _trials(search)[0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("names", [ONE, TWO])
@pytest.mark.parametrize(
    ("status", "state"), [("finished", "COMPLETE"), ("stopped", "PRUNED"), ("diverged", "PRUNED"), ("failed", "FAIL")]
)
def test_the_study_knows_how_each_trial_ended(
    status: str, state: str, names: tuple[str, ...], shared: bool, tmp_path: Path
) -> None:
    """At once: what is running to a shared study is proposed to another driver after its grace."""
    place = f"sqlite:///{tmp_path}/study.db" if shared else ""
    search = Search(LGD_NANO, tmp_path / "a", objectives=names, place=place)
    with driver(search) as searcher:
        proposed = searcher.suggest("1")
        searcher.on_trial_result("1", progress(120, 5.0, 100))
        searcher.on_trial_complete("1", end(search, proposed, status, {100: 5.0, 500: 7.0}))
        trial = _first(search)
        assert trial.state.name == state
    values = {ONE: [7.0], TWO: [7.0, pytest.approx(1 / 60)]}
    if state == "COMPLETE":
        assert trial.values == values[names]
    if names == TWO:
        # Optuna takes no learning curve there.
        assert (trial.intermediate_values, trial.values if state != "COMPLETE" else None) == ({}, None)
    elif status in ("finished", "stopped"):
        assert trial.intermediate_values == {100: 5.0, 500: 7.0}


def test_a_trial_that_the_scheduler_ends_is_pruned_with_its_curve(tmp_path: Path) -> None:
    """It has no record yet, and its last report did not come to the searcher before."""
    search = Search(LGD_NANO, tmp_path, early_stop=True)
    with driver(search) as searcher:
        searcher.suggest("1")
        for report in (progress(3, 1.0, 2), progress(4, 1.0, 2), progress(5, 2.0, 4)):
            searcher.on_trial_result("1", report)
        searcher.on_trial_complete("1", progress(7, 3.0, 6))
    trial = _first(search)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {2: 1.0, 4: 2.0, 6: 3.0}
    # For no best trial.
    assert search.study().get_trials(states=(TrialState.COMPLETE,)) == []


@pytest.mark.parametrize("last", [None, {"stopped": 5}, {"stopped": 0, "unpublished": "why"}])
def test_what_stopped_with_its_sweep_goes_on_later(last: dict[str, Any] | None, tmp_path: Path) -> None:
    """As the same trial of the study, with the part of its learning curve that it had."""
    search = Search(LGD_NANO, tmp_path, samples=4)
    with driver(search) as searcher:
        first, second = searcher.suggest("1"), searcher.suggest("2")
        searcher.on_trial_result("1", progress(2, 1.0, 2))
        interrupt(search, first["name"], {2: 1.0, 4: 2.0})
        searcher.on_trial_complete("1", last)
        searcher.on_trial_complete("2", end(search, second, "failed"))
    assert [x.state.name for x in _trials(search)] == ["RUNNING", "FAIL"]
    with driver(search) as searcher:
        again, new = searcher.suggest("3"), searcher.suggest("4")
        assert (again["name"], new["name"]) == (first["name"], "search-002")
        assert {k: v for k, v in again.items() if k != "base"} == {k: v for k, v in first.items() if k != "base"}
        searcher.on_trial_result("3", progress(6, 3.0, 6))
        searcher.on_trial_complete("3", end(search, again, curve={2: 1.0, 4: 2.0, 6: 3.0}))
    trial = _first(search)
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [3.0])
    assert trial.intermediate_values == {2: 1.0, 4: 2.0, 6: 3.0}


@pytest.mark.parametrize(("status", "state"), [("finished", "COMPLETE"), ("stopped", "PRUNED"), ("diverged", "PRUNED")])
def test_what_a_killed_driver_did_not_tell_its_record_tells(status: str, state: str, tmp_path: Path) -> None:
    search = Search(LGD_NANO, tmp_path, samples=4)
    with driver(search) as searcher:
        end(search, searcher.suggest("1"), status, {2: 1.0, 4: 2.0})
    trial = _first(search)
    assert trial.state.name == state
    assert trial.intermediate_values == {2: 1.0, 4: 2.0}


def test_a_trial_without_all_of_its_parameters_gets_the_rest(tmp_path: Path) -> None:
    """The driver was killed while Optuna chose them, or before it chose any."""
    search = Search(LGD_NANO, tmp_path, samples=4)
    search.study().ask()
    search.study().ask().suggest_categorical("method.mapper", [True, False])
    with driver(search) as searcher:
        assert searcher.suggest("1")["name"] == "search-001"
        assert searcher.suggest("2")["name"] == "search-002"
    assert [x.state.name for x in _trials(search)] == ["FAIL", "RUNNING", "RUNNING"]
    assert _trials(search)[1].params.keys() >= {"method.mapper", "method.encoder", "method.lr_factor"}


def test_a_trial_that_another_driver_took_for_dead_is_its_own_no_more(tmp_path: Path) -> None:
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=f"sqlite:///{tmp_path}/study.db")
    with driver(search) as searcher:
        searcher.suggest("1")
        searcher.suggest("2")
    with driver(search) as searcher:
        search.study().tell(0, state=TrialState.FAIL)
        again = searcher.suggest("3")
        assert again["name"] == "search-001"
        # Nor is the next, from now on.
        search.study().tell(1, state=TrialState.FAIL)
        searcher.on_trial_result("3", progress(2, 1.0, 2))
        searcher.on_trial_complete("3", end(search, again, curve={2: 1.0}))
        assert searcher.suggest("4")["name"] == "search-002"
    assert [x.state.name for x in _trials(search)] == ["FAIL", "FAIL", "RUNNING"]


def test_unfinished_trials_that_wait_are_alive(tmp_path: Path) -> None:
    """Another driver does not take them for dead while this one trains the first of them."""
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=f"sqlite:///{tmp_path}/study.db")
    with driver(search) as searcher:
        for i in "123":
            searcher.suggest(i)
    beaten: list[int] = []
    with pytest.MonkeyPatch.context() as patch, driver(search) as searcher:
        patch.setattr(RDBStorage, "record_heartbeat", lambda _, number: beaten.append(number))
        searcher.suggest("4")
    assert set(beaten) == {x._trial_id for x in _trials(search)}


def test_a_part_of_the_curve_that_is_lost_is_reported_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=f"sqlite:///{tmp_path}/study.db")
    store, away = RDBStorage.set_trial_intermediate_value, [True]

    def stored(*arguments: Any) -> None:
        if away:
            away.pop()
            raise optuna.exceptions.StorageInternalError("the server closed the connection")
        store(*arguments)

    monkeypatch.setattr(RDBStorage, "set_trial_intermediate_value", stored)
    with driver(search) as searcher:
        searcher.suggest("1")
        searcher.on_trial_result("1", progress(2, 1.0, 2))
        assert _first(search).intermediate_values == {}
        searcher.on_trial_result("1", progress(4, 2.0, 4))
    assert _first(search).intermediate_values == {2: 1.0, 4: 2.0}


def test_a_point_that_an_earlier_version_put_into_the_queue_is_proposed(tmp_path: Path) -> None:
    """And goes on in the directory of the trial that it was, which failed in the study."""
    search = Search(LGD_NANO, tmp_path, samples=4)
    with driver(search) as searcher:
        first = searcher.suggest("1")
    study = search.study()
    study.tell(0, state=TrialState.FAIL)
    study.enqueue_trial(study.trials[0].params)
    with driver(search) as searcher:
        assert searcher.suggest("2")["name"] == first["name"]


def test_hours_are_those_of_the_training_steps(tmp_path: Path) -> None:
    """Of a trial that was interrupted they are what they are of one in one go."""
    search = Search(LGD_NANO, tmp_path, objectives=TWO)
    with driver(search) as searcher:
        proposed = searcher.suggest("1")
        end(search, proposed, curve={2: 1.0})
    record = load(tmp_path / "trials" / proposed["name"] / "record.json")
    phases = {"setup": 9.0, "training": 60.0, "evaluation": 30.0, "lost": 500.0}
    assert objectives(record.model_copy(update={"device_seconds": phases})) == {"AP": 1.0, "gpu_hours": 60 / 3600}
    # Not for free.
    assert objectives(record.model_copy(update={"device_seconds": {}})) == {"AP": 1.0}


def test_tpe_stays_away_from_where_trainings_diverge() -> None:
    """What the study is told of them is what Optuna learns from."""

    def diverged(state: TrialState) -> int:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
        for _ in range(40):
            trial = study.ask()
            rate = trial.suggest_float("rate", 0.1, 10, log=True)
            study.tell(trial, *([rate] if rate < 1 else [None, state]))
        return sum(x.state == state for x in study.trials[10:])

    with quiet_optuna():
        assert diverged(TrialState.PRUNED) < 0.7 * diverged(TrialState.FAIL)


def test_drivers_do_not_train_what_diverged_elsewhere(tmp_path: Path) -> None:
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=f"sqlite:///{tmp_path}/study.db")
    beside = replace(search, output=tmp_path / "b")
    with driver(search) as one, driver(beside) as other:
        one.on_trial_complete("1", end(search, one.suggest("1"), "diverged"))
        assert search.study().get_trials(states=(TrialState.RUNNING, TrialState.WAITING)) == []
        assert other.suggest("1")["name"] == "search-001"
