"""What is done for each trial of a sweep does not grow with the number of its trials: counted, not timed."""

from __future__ import annotations

import heapq
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from ablations import damaged
from ablations.display import seconds_until_all_end
from ablations.plan import describe, trials_of
from ablations.run import main
from ablations.search.optuna_search import TrialNames
from ablations.sweep_display import NoDisplay
from ablations.trial_config import STOP_FILE, RecordLabels, trial_config
from ablations.tune import ray_sweep
from ablations.tune.planned_trials import PlannedTrials
from ablations.tune.ray_sweep import Outcome, SweepCallback
from ablations.tune.ray_trial import config_of, last_report
from lgd import files
from lgd.config.component_arms import COMPONENTS
from lgd.config.experiment import Experiment
from lgd.config.grids import Trial, plan
from lgd.config.presets import NANO
from lgd.distributed.resources import Resources
from lgd.results.record import FILE, Record, load
from tests.helpers import quick_experiment

LABELS = RecordLabels("components", "nano")


def test_tune_gets_the_planned_trials_one_by_one(tmp_path: Path) -> None:
    """In their order, as text that Tune copies at no cost, and none any more once the sweep is to stop."""
    trials = plan(COMPONENTS, NANO, 2, [], tmp_path)[:4]
    configs = [trial_config(trial, LABELS, tmp_path, Resources(1, 0, 1)) for trial in trials]
    planned = PlannedTrials(configs, tmp_path / STOP_FILE)
    proposed = [planned.suggest(str(i)) for i in range(3)]
    assert [config_of(x)["name"] for x in proposed] == [trial.name for trial in trials[:3]]
    assert all(isinstance(value, str) for x in proposed for value in x.values())
    assert config_of(proposed[2]) == configs[2]
    (tmp_path / STOP_FILE).touch()
    assert planned.suggest("3") == PlannedTrials.FINISHED
    (tmp_path / STOP_FILE).unlink()
    assert config_of(planned.suggest("3")) == configs[3]
    assert planned.suggest("4") == PlannedTrials.FINISHED


def test_tune_writes_its_state_at_the_end_alone() -> None:
    """It has every trial in it, and no sweep goes on from it."""
    from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

    manager: Any = _ExperimentCheckpointManager(
        storage=None, checkpoint_period=ray_sweep.QUIET["TUNE_GLOBAL_CHECKPOINT_S"]
    )
    manager._last_save_time = 0.0
    saved: list[int] = []
    manager._storage = SimpleNamespace(experiment_driver_staging_path="")
    for _ in range(100):
        manager.sync_up_experiment_state(lambda: saved.append(1))
    assert saved == []


class _NoWholeSums(dict[str, float]):
    def values(self) -> Any:
        raise AssertionError("all trials were summed up at one trial's report")


def test_a_report_of_a_trial_leaves_the_others_alone_and_its_record_is_not_kept(tmp_path: Path) -> None:
    trials = [Trial("LGD", quick_experiment(seed=i), tmp_path / "trials" / f"lgd-seed{i}") for i in range(5)]
    outcome, budgets = Outcome(), list[float]()

    def exceeded(seconds: float) -> str:
        budgets.append(seconds)
        return ""

    callback = SweepCallback(LABELS, tmp_path, NoDisplay(), exceeded, outcome)
    callback.expect(trials)
    callback._spent = _NoWholeSums()
    of_tune = [SimpleNamespace(config={"trial": json.dumps({"name": trial.name})}) for trial in trials]
    for x in of_tune:
        callback.on_trial_result(1, of_tune, x, {"step": 1, "steps": 2, "spent": 10.0})
        callback.on_trial_result(2, of_tune, x, {"step": 2, "steps": 2, "spent": 15.0})
    assert budgets[-1] == 75.0
    record = Record(status="finished", arm="LGD", experiment=trials[0].experiment, device_seconds={"training": 20.0})
    result = last_report(record)
    callback.on_trial_result(3, of_tune, of_tune[0], result)
    assert load(trials[0].directory / FILE) == record
    assert "record" not in result
    assert (outcome.spent, outcome.ended) == (80.0, {trials[0].name})


def _simulated(ends: list[float], waiting: int, each: float) -> float:
    ends = sorted(ends)
    for _ in range(waiting):
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def test_the_time_left_is_told_without_going_through_all_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, replaced = random.Random(0), list[float]()
    for _ in range(500):
        ends = [rng.choice([0.0, 50 * rng.random(), float(rng.randrange(9))]) for _ in range(rng.randrange(1, 6))]
        waiting, each = rng.randrange(30), rng.choice([0.5, 3.0, 20 * rng.random()])
        assert seconds_until_all_end(ends, waiting, each) == pytest.approx(_simulated(ends, waiting, each))
    replace = heapq.heapreplace

    def counting(heap: list[float], x: float) -> float:
        replaced.append(x)
        return replace(heap, x)

    # The module that ablations/display.py has imported, too.
    monkeypatch.setattr(heapq, "heapreplace", counting)
    assert seconds_until_all_end([0.0, 7.0, 1e6], 10**6, 2.0) == pytest.approx(2e6 / 3 + 1e6 / 3, rel=1e-3)
    assert len(replaced) <= 3


class _CountedStudy:
    """A study that counts how often one of its trials is looked at."""

    def __init__(self, study: optuna.Study) -> None:
        self._study, self.looks = study, 0

    def get_trials(self, deepcopy: bool = True) -> Any:
        counted = self

        class Trials(list[optuna.trial.FrozenTrial]):
            def __getitem__(self, i: Any) -> Any:
                counted.looks += 1
                return super().__getitem__(i)

            def __iter__(self) -> Any:
                raise AssertionError("all trials were gone through")

        return Trials(self._study.get_trials(deepcopy=deepcopy))


def test_a_trial_of_a_search_is_named_by_its_own_parameters_alone() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    counted = _CountedStudy(study)
    names = TrialNames(counted)  # type: ignore[arg-type]
    for i in range(50):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        assert names.of(trial.params) == f"search-{i:03}"
        assert names.of(trial.params) == f"search-{i:03}"
        study.tell(trial, 0.0)
    # And once more where it was at work when it was first looked at.
    assert counted.looks < 100
    # What is proposed again waits without parameters until it is asked for.
    study.enqueue_trial(study.trials[3].params)
    with pytest.raises(KeyError):
        names.of({"x": 2.0})
    assert study.trials[-1].state == TrialState.WAITING
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    assert names.of(trial.params) == "search-003"


def test_status_reads_every_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = describe("components", "nano", arms="baseline,LGD", seeds=3)
    spec.write(tmp_path)
    for trial in trials_of(spec, tmp_path).trials:
        Record(status="finished", arm=trial.arm, experiment=trial.experiment).save(trial.directory)
    read: list[Path] = []
    read_file = files.read_file

    def reading(path: Path) -> bytes:
        read.append(path)
        return read_file(path)

    monkeypatch.setattr("lgd.results.record.read_file", reading)
    monkeypatch.setattr(damaged, "load", load)
    assert main(["--status", str(tmp_path)]) == 0
    assert sorted(x.parent.name for x in read if x.name == FILE) == sorted(
        f"{arm}-seed{seed}" for arm in ("baseline", "lgd") for seed in range(3)
    )


def test_seeds_are_planned_without_checking_every_setting_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checked: list[Any] = []
    override = Experiment.override

    def checking(self: Experiment, changes: Any) -> Experiment:
        checked.append(changes)
        return override(self, changes)

    monkeypatch.setattr(Experiment, "override", checking)
    counts = []
    for seeds in (1, 30):
        trials = plan(COMPONENTS, NANO, seeds, [], tmp_path)
        counts.append(len(checked))
        checked.clear()
    assert counts[0] == counts[1]
    assert [t.experiment.seed for t in trials if t.arm == "LGD"] == list(range(30))
    assert trials[-1].experiment == override(trials[-1].experiment, {"seed": 29})
