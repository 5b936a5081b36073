"""What a training costs over several attempts at it: each is counted once, whatever ended it and when."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from lgd.distributed import ranks
from lgd.errors import InputError
from lgd.results import cost_meter
from lgd.results.cost_meter import HEARTBEAT_FILE, CostMeter, CostSoFar, Heartbeat, read_heartbeat
from lgd.training import checkpoint
from lgd.training import run as training
from lgd.training.run import failed_record
from lgd.training.state import TrainingState
from tests.helpers import quick_experiment

EXPERIMENT = quick_experiment(**{"checkpoint.every": 2, "method.name": "baseline"})


def _kill(directory: Path, steps: int) -> None:
    """Train until an attempt ends after that many steps without a checkpoint of its own, as a killed one does."""
    calls = iter(range(steps - 1))
    with pytest.raises(StopIteration):
        training.run(EXPERIMENT, directory, should_stop=lambda: next(calls) < 0)


class _Joules:
    """A stand-in for a GPU's counter, which gains a joule each time that it is read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.value = 0.0
        patch.setattr("lgd.training.run.gpu_energy", lambda device, share: self._read)

    def _read(self) -> float:
        self.value += 1
        return self.value


def test_a_set_up_that_fails_in_a_new_directory_has_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that finds no memory left on its GPU: in its own record, and in that of the next attempt."""
    directory = tmp_path / "trials" / "a"

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(training, "_build", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            training.run(EXPERIMENT, directory)
    spent = read_heartbeat(directory)
    assert spent.attempts == 1
    assert spent.device_seconds > 0
    assert failed_record(EXPERIMENT, "", directory=directory).device_seconds == {"lost": spent.device_seconds}
    record = training.run(EXPERIMENT, directory)
    assert record.attempts == 2
    assert record.device_seconds["lost"] == pytest.approx(spent.device_seconds, abs=0.001)
    assert not (directory / HEARTBEAT_FILE).exists()


def test_what_the_user_got_wrong_costs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        training.run(EXPERIMENT.override({"data.source": f"voc:{tmp_path / 'nothing'}"}), tmp_path / "trials" / "a")
    assert not (tmp_path / "trials").exists()


def test_a_heartbeat_while_earlier_costs_are_restored_counts_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill just then leaves what the thread has written: it must not hold them in the total and beside it."""
    _kill(tmp_path, 5)
    before, found = read_heartbeat(tmp_path), list[CostSoFar]()
    beat, add = Heartbeat._write, TrainingState.add_earlier_cost
    heartbeats: list[Heartbeat] = []

    def write(heartbeat: Heartbeat) -> None:
        heartbeats.append(heartbeat)
        beat(heartbeat)

    def add_and_beat(*arguments: Any) -> None:
        add(*arguments)
        thread = threading.Thread(target=beat, args=(heartbeats[-1],))
        thread.start()
        thread.join(0.2)
        found.append(read_heartbeat(tmp_path))

    monkeypatch.setattr(cost_meter, "HEARTBEAT_PERIOD", 60.0)
    monkeypatch.setattr(Heartbeat, "_write", write)
    monkeypatch.setattr(TrainingState, "add_earlier_cost", add_and_beat)
    assert training.run(EXPERIMENT, tmp_path).attempts == 2
    assert before.attempts == 1
    assert [x.attempts for x in found] == [2]


@pytest.mark.parametrize("killed_after", [1, 5])
def test_lost_joules_of_several_workers_are_counted(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's are known at a checkpoint, the main worker's at each heartbeat: like is compared with like."""
    counter, theirs = _Joules(monkeypatch), {"training": 1000.0}
    gather = ranks.all_gather

    def with_another_worker(value: Any) -> list[Any]:
        return [value, {**value, "joules": theirs}] if isinstance(value, dict) and "joules" in value else gather(value)

    monkeypatch.setattr(ranks, "all_gather", with_another_worker)
    _kill(tmp_path, killed_after)
    spent, first = read_heartbeat(tmp_path).joules, counter.value
    saved = 0.0
    if killed_after > 1:
        path = tmp_path / checkpoint.DIRECTORY / f"step-{killed_after - 1:08}.pth"
        meter = torch.load(path, weights_only=True)["state"]["meter"]
        assert meter["joules_of_others"] == theirs
        saved = sum(meter["joules"].values()) + 1000
    assert 0 < spent - saved < first
    record = training.run(EXPERIMENT, tmp_path)
    assert record.joules["lost"] == pytest.approx(spent - saved)
    # The other worker's of both attempts, as far as the first has saved them, and the main worker's of both.
    known = 2000 if killed_after > 1 else 1000
    assert known < sum(record.joules.values()) <= known + counter.value
    assert record.joules["training"] > known


def test_workers_but_the_main_one_count_no_joules_of_earlier_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = CostMeter(2)
    saved.joules, saved.joules_of_others = {"training": 30.0}, {"training": 50.0}
    spent = CostSoFar(device_seconds=4.0, joules=95.0, attempts=1, seconds=2.0)
    found = []
    for is_main in (True, False):
        monkeypatch.setattr(ranks, "is_main_process", lambda is_main=is_main: is_main)
        nothing = cast(Any, None)
        meter = CostMeter(2)
        state = TrainingState(nothing, EXPERIMENT, Path(), "", meter, nothing, nothing)
        state._saved_cost = saved.state()
        state.add_earlier_cost(spent)
        found.append((meter.joules, meter.joules_of_others, meter.device_seconds["lost"], meter.attempts))
    assert found == [({"training": 30.0, "lost": 15.0}, {"training": 50.0}, 4.0, 2), ({}, {}, 4.0, 2)]


def test_an_earlier_checkpoints_joules_are_restored() -> None:
    """It has the sum over the workers as the main one's."""
    saved = {k: v for k, v in CostMeter(2).state().items() if k != "joules_of_others"}
    meter = CostMeter(2)
    meter.restore({**saved, "joules": {"training": 80.0}})
    assert meter.cost_so_far().joules == 80
    assert CostSoFar(joules=95.0).since_checkpoint({**saved, "joules": {"training": 80.0}}).joules == 15
