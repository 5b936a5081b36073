"""Seconds by phase."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lgd.errors import InputError
from lgd.results import cost_meter
from lgd.results.cost_meter import (
    HEARTBEAT_FILE,
    CostMeter,
    CostSoFar,
    Heartbeat,
    gpu_energy,
    read_heartbeat,
)
from lgd.results.peak_memory import peak_memory_mib, reset_peak_memory
from lgd.results.record import load
from lgd.training import run as training
from tests.helpers import quick_experiment


def test_an_inner_phase_pauses_the_outer_one() -> None:
    now = [0.0]
    meter = CostMeter(clock=lambda: now[0])
    with meter.phase("setup"):
        now[0] += 2
        with meter.phase("training"):
            now[0] += 10
            with meter.phase("evaluation"):
                now[0] += 3
            now[0] += 5
        now[0] += 1
    now[0] += 100
    assert meter.seconds == {"setup": 3, "training": 15, "evaluation": 3, "checkpoint": 0, "lost": 0}


def test_a_phase_ends_with_an_error_too() -> None:
    now = [0.0]
    meter = CostMeter(clock=lambda: now[0])
    with pytest.raises(ValueError, match="boom"), meter.phase("training"):
        now[0] += 4
        raise ValueError("boom")
    now[0] += 4
    with meter.phase("setup"):
        now[0] += 1
    assert meter.seconds == {"setup": 1, "training": 4, "evaluation": 0, "checkpoint": 0, "lost": 0}


def test_peak_memory_sees_an_allocation_that_is_gone() -> None:
    reset_peak_memory()
    before = peak_memory_mib()["host"]
    block = np.ones(200 * 2**17)
    del block
    assert peak_memory_mib()["host"] - before > 150


class _Counter:
    """A clock, or a counter of joules, that is moved by hand."""

    def __init__(self) -> None:
        self.value = 0.0

    def __call__(self) -> float:
        return self.value


def test_devices_and_joules_are_counted_by_phase() -> None:
    clock, energy = _Counter(), _Counter()
    energy.value = 1e6
    meter = CostMeter(4, clock, energy)
    with meter.phase("training"):
        clock.value, energy.value = 10, 1e6 + 3000
        with meter.phase("evaluation"):
            clock.value, energy.value = 12, 1e6 + 3100
        clock.value = 13
        assert meter.cost_so_far() == CostSoFar(52, 3100, 1, 13, (4, 4))
    clock.value, energy.value = 50, 2e6
    assert meter.seconds["training"] == 11
    assert meter.device_seconds == {"setup": 0, "training": 44, "evaluation": 8, "checkpoint": 0, "lost": 0}
    assert meter.joules == {"training": 3000, "evaluation": 100}


def test_a_part_of_a_gpu_is_a_part_of_a_device() -> None:
    clock = _Counter()
    meter = CostMeter(0.25, clock)
    with meter.phase("training"):
        clock.value = 8
    assert meter.device_seconds["training"] == 2


def test_attempts_add_up_and_lost_work_is_what_no_checkpoint_saved(tmp_path: Path) -> None:
    clock, energy = _Counter(), _Counter()
    first = CostMeter(2, clock, energy)
    with Heartbeat(first, tmp_path, "settings") as heartbeat:
        assert heartbeat.previous_cost("this run") == CostSoFar()
        with first.phase("setup"):
            clock.value, energy.value = 3, 30
        heartbeat.begin_training("this run")
        with first.phase("training"):
            clock.value, energy.value = 13, 130
            saved = first.state()
            # Killed here: ten seconds later than the checkpoint.
            clock.value, energy.value = 23, 250
    assert read_heartbeat(tmp_path) == read_heartbeat(tmp_path, "this run") == CostSoFar(46, 250, 1, 23, (2, 2))
    assert read_heartbeat(tmp_path, "another run") == CostSoFar()

    clock.value, energy.value = 100, 1000
    second = CostMeter(2, clock, energy)
    with Heartbeat(second, tmp_path, "settings") as again, second.phase("setup"):
        clock.value, energy.value = 101, 1010
        spent = again.previous_cost("this run")
        assert again.previous_cost("another run") == CostSoFar()
    second.restore(saved)
    second.add_lost_work(spent.since_checkpoint(saved))
    with second.phase("training"):
        clock.value, energy.value = 106, 1060
    assert second.attempts == 2
    assert second.device_seconds == {"setup": 8, "training": 30, "evaluation": 0, "checkpoint": 0, "lost": 20}
    assert second.joules == {"setup": 40, "training": 150, "lost": 120}
    # What both attempts took, and nothing twice.
    assert sum(second.device_seconds.values()) == 2 * (23 + 6)


def test_each_attempt_costs_by_its_own_number_of_devices(tmp_path: Path) -> None:
    """Eight devices, then two, then four: seconds times devices of each, what was lost included."""
    clock, saved = _Counter(), None
    for devices, done, lost in ((8, 10, 5), (2, 20, 30), (4, 10, 0)):
        meter = CostMeter(devices, clock)
        with Heartbeat(meter, tmp_path, "settings") as heartbeat, meter.phase("training"):
            spent = heartbeat.previous_cost("this run")
            if saved is not None:
                meter.restore(saved)
                meter.add_lost_work(spent.since_checkpoint(saved))
            heartbeat.begin_training("this run")
            clock.value += done
            saved = meter.state()
            clock.value += lost
    assert meter.device_seconds["training"] + meter.device_seconds["lost"] == 8 * 15 + 2 * 50 + 4 * 10
    assert meter.device_seconds["lost"] == 8 * 5 + 2 * 30
    assert (meter.seconds["training"], meter.seconds["lost"]) == (40, 35)
    assert (meter.held, meter.attempts) == ((2, 8), 3)


def _set_up(directory: Path, seconds: float, experiment: str = "settings") -> str:
    """An attempt of 2 devices that is killed after so many seconds of its set-up; what its file says."""
    clock = _Counter()
    meter = CostMeter(2, clock)
    with meter.phase("setup"), Heartbeat(meter, directory, experiment) as heartbeat:
        clock.value = seconds
        heartbeat._write()
        return (directory / HEARTBEAT_FILE).read_text()


def test_attempts_that_were_killed_while_they_were_set_up_are_lost_work(tmp_path: Path) -> None:
    file = tmp_path / "trial" / HEARTBEAT_FILE
    clock = _Counter()
    first = CostMeter(2, clock)
    with first.phase("training"), Heartbeat(first, file.parent, "settings") as heartbeat:
        heartbeat.begin_training("this run")
        clock.value = 10
    for seconds in (3, 4):
        killed = _set_up(file.parent, seconds)
        file.write_text(killed)
    assert read_heartbeat(file.parent) == CostSoFar(2 * 17, 0, 3, 17, (2, 2))
    with Heartbeat(CostMeter(2, clock), file.parent, "settings") as again:
        assert again.previous_cost("this run") == CostSoFar(2 * 17, 0, 3, 17, (2, 2))
        assert again.previous_cost("another run") == CostSoFar(2 * 7, 0, 2, 7, (2, 2))
        # From now on the totals hold all of it, and nothing twice.
        again.begin_training("this run")
        assert read_heartbeat(file.parent) == CostSoFar(0, 0, 1, 0, (2, 2))
    file.write_text(killed)
    with Heartbeat(CostMeter(2, clock), file.parent, "other settings") as other:
        assert other.previous_cost("this run") == CostSoFar(2 * 10, 0, 1, 10, (2, 2))


def test_on_a_full_disk_the_cost_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Counter()
    meter = CostMeter(1, clock)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with meter.phase("training"), Heartbeat(meter, tmp_path, "settings") as heartbeat:
        heartbeat.begin_training("this run")
        monkeypatch.setattr(cost_meter, "write_text", no_room)
        clock.value = 12
    assert read_heartbeat(tmp_path, "this run").device_seconds == 12


def test_a_set_up_that_refuses_its_input_leaves_no_directory(tmp_path: Path) -> None:
    new = tmp_path / "new" / "trial"
    with pytest.raises(InputError, match="no such data"), Heartbeat(CostMeter(), new, "settings"):
        assert read_heartbeat(new).attempts == 1
        raise InputError("no such data")
    assert not new.parent.exists()
    new.mkdir(parents=True)
    with pytest.raises(InputError, match="no such data"), Heartbeat(CostMeter(), new, "settings"):
        raise InputError("no such data")
    assert read_heartbeat(new).attempts == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"set-up": 3}',
        '{"set-up": {"device_seconds": []}}',
        '{"fingerprint": "x"}',
        '{"device_seconds": "nan"}',
    ],
)
def test_a_broken_word_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT_FILE).write_text(content)
    assert read_heartbeat(tmp_path) == CostSoFar()


# Energy


@pytest.mark.parametrize("uuid", ["8f3b", "GPU-8f3b", "MIG-8f3b"])
def test_joules_are_nvmls_of_the_very_device(uuid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML numbers a machine's GPUs, torch those that it may see: the name that both know tells which one is meant."""
    millijoules, asked = iter((1000, 5_000_000, 5_250_000)), list[str]()
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: asked.append(name) or "handle",  # type: ignore[func-returns-value]
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
    read = gpu_energy(torch.device("cuda"), share=0.5)
    assert read is not None
    assert asked == ["MIG-8f3b" if uuid.startswith("MIG") else "GPU-8f3b"]
    assert (read(), read()) == (2500, 2625)


def test_where_nvml_cannot_say_no_energy_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_energy(torch.device("cpu")) is None

    def refuse() -> None:
        raise OSError("no driver")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=refuse))
    assert gpu_energy(torch.device("cuda")) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_energy(torch.device("cuda")) is None


def test_a_records_joules_and_watts_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the counter, which gains a joule each time that it is read."""
    counter = _Counter()

    def gain() -> float:
        counter.value += 1
        return counter.value

    monkeypatch.setattr("lgd.training.run.gpu_energy", lambda device, share: gain)
    experiment = quick_experiment(**{"checkpoint.every": 2})
    with pytest.raises(training.Stopped):
        training.run(experiment, tmp_path, should_stop=iter([False, False, False, True]).__next__)
    between = counter.value
    record = training.run(experiment, tmp_path)
    assert set(record.joules) >= {"setup", "training", "evaluation", "checkpoint"}
    # The second attempt alone gained what the counter did while it was at work; the first one's are there besides.
    assert record.joules["training"] > 0
    assert between < sum(record.joules.values()) <= counter.value
    assert record.watts == pytest.approx(record.joules["training"] / record.device_seconds["training"])
    assert load(tmp_path / "record.json") == record


@pytest.mark.gpu
def test_a_gpu_uses_energy_and_its_record_says_so(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"device": "cuda", "schedule.steps": 200}
    record = training.run(quick_experiment(**changes), tmp_path)
    if gpu_energy(torch.device("cuda")) is None:
        pytest.skip("this GPU has no counter of energy")
    assert record.joules["training"] > 0
    assert record.watts is not None
    assert 5 < record.watts < 2000
