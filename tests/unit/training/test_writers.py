"""TensorBoard always; the services through stand-ins that remember what they were sent."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from lgd.config.experiment import Experiment
from lgd.errors import InputError
from lgd.training import checkpoint
from lgd.training import run as training
from tests.helpers import quick_experiment


@pytest.fixture(autouse=True)
def _files_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files by name, with the second and a number in it: after 9 comes 10, which it reads first.

    Two attempts in one second are these tests' alone; their numbers begin at 0, whatever ran before.
    """
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def _kill(experiment: Experiment, directory: Path, step: int) -> None:
    """Train until an attempt ends after ``step`` without a checkpoint of its own, as a killed one does."""
    calls = iter(range(step))
    with pytest.raises(StopIteration):
        training.run(experiment, directory, should_stop=lambda: next(calls) < 0)


@pytest.mark.parametrize(("step", "begins_at"), [(2, 0), (5, 3)])
def test_a_killed_trainings_steps_are_logged_once(
    step: int, begins_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first checkpoint, and after it: the steps since are done again."""
    service = _Service("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", service)
    experiment = quick_experiment(**{"log": ["mlflow"], "checkpoint.every": 3, "method.name": "baseline"})
    _kill(experiment, tmp_path, step)
    assert (checkpoint.last_step(tmp_path) or 0) == begins_at
    record = training.run(experiment, tmp_path)
    assert record.attempts == 2
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in board.Scalars("total_loss")] == list(range(6))
    assert [at for at, values in service.points if "total_loss" in values] == list(range(6))
    assert service.runs == ["r1"]
    # Another training in the directory: its steps are not those that were logged before.
    (tmp_path / "record.json").unlink()
    training.run(experiment, tmp_path)
    assert service.runs == ["r1", "r2"]


def test_tensorboard_shows_every_loss_once_after_a_resume(tmp_path: Path) -> None:
    experiment = quick_experiment(**{"schedule.steps": 8, "checkpoint.every": 3})
    calls = iter([False] * 4 + [True])
    with pytest.raises(training.Stopped):
        training.run(experiment, tmp_path, should_stop=lambda: next(calls))
    training.run(experiment, tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"total_loss", "loss_distill", "instructive/loss_cls", "lr"} <= set(board.Tags()["scalars"])
    assert [point.step for point in board.Scalars("total_loss")] == list(range(8))


class _Service(ModuleType):
    """wandb and mlflow, as far as they are used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: dict[str, Any] = {}
        self.points: list[tuple[int, dict[str, float]]] = []
        self.ended = 0
        self.runs: list[str] = []
        self.tracking = SimpleNamespace(MlflowClient=lambda: self)
        self.entities = SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, step))

    def init(self, **given: Any) -> _Service:
        self.begun = given
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.points.append((step, values))

    def finish(self) -> None:
        self.ended += 1

    def get_experiment_by_name(self, name: str) -> None:
        self.begun["project"] = name

    def create_experiment(self, name: str) -> str:
        return "7"

    def search_runs(self, homes: list[str], matching: str, max_results: int) -> list[Any]:
        assert "lgd.run" in matching
        return [SimpleNamespace(info=SimpleNamespace(run_id=self.runs[-1]))] if self.runs else []

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        self.begun |= {"name": run_name, "config": {}}
        self.runs.append(f"r{len(self.runs) + 1}")
        return SimpleNamespace(info=SimpleNamespace(run_id=self.runs[-1]))

    def log_param(self, run: str, name: str, value: Any) -> None:
        self.begun["config"][name] = value

    def log_batch(self, run: str, metrics: list[tuple[str, float, int]]) -> None:
        self.points += [(step, {name: value}) for name, value, step in metrics]

    def get_metric_history(self, run: str, name: str) -> list[Any]:
        assert run == self.runs[-1]
        return [SimpleNamespace(step=step) for step, values in self.points if name in values]

    def set_terminated(self, run: str) -> None:
        self.ended += 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_gets_settings_and_curves(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    record = training.run(quick_experiment(log=[name]), tmp_path / "run")
    assert service.begun["project"] == "lgd"
    assert service.begun["name"] == "run"
    assert service.begun["config"]["method.distill_weight"] == 1.0
    assert service.ended == 1
    sent = {(step, key) for step, values in service.points for key in values}
    assert {(step, "total_loss") for step in range(6)} <= sent
    assert len([1 for _, values in service.points if "total_loss" in values]) == record.steps


def test_a_service_that_is_down_does_not_end_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = _Service("wandb")

    def fail(values: dict[str, float], step: int) -> None:
        raise ConnectionError("no way\nthere")

    monkeypatch.setattr(service, "log", fail)
    monkeypatch.setitem(sys.modules, "wandb", service)
    assert training.run(quick_experiment(log=["wandb"]), tmp_path / "run").status == "finished"
    assert caplog.text.count("no way there") == 1


def test_a_service_that_does_not_let_us_in_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _Service("wandb")

    def refuse(**_: Any) -> None:
        raise ValueError("no API key:\nuse wandb login")

    monkeypatch.setattr(service, "init", refuse)
    monkeypatch.setitem(sys.modules, "wandb", service)
    # At the next attempt, too.
    for _ in range(2):
        with pytest.raises(InputError, match="^log wandb: no API key: use wandb login$"):
            training.run(quick_experiment(log=["wandb"]), tmp_path / "run")
    assert not (tmp_path / "run" / "record.json").exists()


def test_a_resumed_training_goes_on_with_its_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _Service("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", service)
    experiment = quick_experiment(log=["mlflow"])
    with pytest.raises(training.Stopped):
        training.run(experiment, tmp_path, should_stop=iter([False, True]).__next__)
    service.begun.clear()
    training.run(experiment, tmp_path)
    assert "name" not in service.begun
    assert {step for step, values in service.points if "total_loss" in values} == set(range(6))


def test_a_service_that_is_away_at_a_resume_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has been trained must not end with it."""
    service = _Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)
    experiment = quick_experiment(log=["wandb"])
    with pytest.raises(training.Stopped):
        training.run(experiment, tmp_path, should_stop=iter([False, True]).__next__)

    def away(**_: Any) -> None:
        raise ConnectionError("503")

    monkeypatch.setattr(service, "init", away)
    assert training.run(experiment, tmp_path).status == "finished"
    assert "log wandb: 503: the training goes on without it" in caplog.text


def test_a_resumed_training_has_its_id_and_a_new_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it goes on; and though it is in the same directory."""
    services = {name: _Service(name) for name in ("wandb", "mlflow")}
    for name, service in services.items():
        monkeypatch.setitem(sys.modules, name, service)
    experiment, ids = quick_experiment(log=[*services]), []
    with pytest.raises(training.Stopped):
        training.run(experiment, tmp_path / "a", should_stop=iter([False, True]).__next__)
    ids.append(services["wandb"].begun["id"])
    (tmp_path / "a").rename(tmp_path / "b")
    training.run(experiment, tmp_path / "b")
    ids.append(services["wandb"].begun["id"])
    (tmp_path / "b/record.json").unlink()
    training.run(experiment, tmp_path / "b")
    ids.append(services["wandb"].begun["id"])
    assert ids[0] == ids[1] != ids[2]
    assert services["mlflow"].runs == ["r1", "r2"]


def test_a_service_that_takes_nothing_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers wait for each attempt."""
    service, asked = _Service("wandb"), []

    def fail(values: dict[str, float], step: int) -> None:
        asked.append(step)
        raise ConnectionError

    monkeypatch.setattr(service, "log", fail)
    monkeypatch.setitem(sys.modules, "wandb", service)
    training.run(quick_experiment(log=["wandb"]), tmp_path / "run")
    assert len(asked) == 1


def test_a_missing_package_is_named_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[wandb\]'"):
        training.run(quick_experiment(log=["wandb"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
