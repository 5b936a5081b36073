"""The processes that load: how many, that they end, and how long a training waits for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lgd.config.experiment import Experiment
from lgd.data.dataset import DataSet
from lgd.data.loaders import val_loader, worker_processes
from lgd.data.mapper import ImageCache
from lgd.errors import InputError
from lgd.results.record import load
from lgd.training import run as training
from lgd.training.worker import loading_within
from tests.helpers import quick_experiment, wait_until
from tests.helpers_data import REPOSITORY
from tests.helpers_loaders import batches


def test_workers_are_sized_to_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert worker_processes(3, cuda=True) == 3
    assert worker_processes("auto", cuda=False) == 0
    assert worker_processes("auto", cuda=True) == 15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_processes("auto", cuda=True) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert worker_processes("auto", cuda=True) == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(256)))
    assert worker_processes("auto", cuda=True) == 16


def test_a_trial_loads_within_the_cores_that_it_holds() -> None:
    auto, stated = quick_experiment(), quick_experiment(**{"data.workers": 5})
    auto = auto.override({"data.workers": "auto"})
    assert [loading_within(auto, cpus, 0.5).data.workers for cpus in (1, 2, 8, 64)] == [1, 1, 7, 16]
    assert loading_within(stated, 8, 1.0).data.workers == 5
    # On the CPU the model itself needs the cores.
    assert loading_within(auto, 8, 0.0).data.workers == "auto"


READER = """
import time
import psutil
from lgd.data.catalog import resolve
from lgd.data.loaders import train_loader, val_loader
from lgd.data.shapes import ShapesSpec

data = resolve("shapes", shapes=ShapesSpec(16, 8, 256))
# Masks make batches that are larger than a pipe's buffer.
train = iter(train_loader(
    data, batch_size=8, min_sizes=(256,), max_size=256, flip=True, masks=True, seed=0, workers=2
))
val = iter(val_loader(data, min_size=256, max_size=256, workers=2, with_labels=True))
next(train), next(val)
print(*[x.pid for x in psutil.Process().children()], flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """They used to wait for ever for somebody to take their batches."""
    reader = subprocess.Popen(
        [sys.executable, "-c", READER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LGD_CACHE": str(tmp_path)},
        cwd=REPOSITORY,
    )
    assert reader.stdout is not None
    with reader.stdout:
        workers = [psutil.Process(int(x)) for x in reader.stdout.readline().split()]
    assert len(workers) == 4
    time.sleep(1)  # until they have as many batches ready as they are asked for
    reader.kill()
    reader.wait()
    try:
        wait_until(lambda: not any(_runs(x) for x in workers), 20)
    finally:
        for worker in filter(_runs, workers):
            worker.kill()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("wrong", [-1, "many", 1.5, True])
def test_impossible_numbers_of_workers(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"data\.workers: must be auto or a whole number from 0"):
        Experiment().override({"data.workers": wrong})


@pytest.mark.gpu
def test_batches_for_a_gpu_are_pinned(made: DataSet) -> None:
    for workers in (0, 2):
        assert all(x["image"].is_pinned() for x in batches(made, 1, workers=workers, cuda=True)[0])
        loader = val_loader(made, min_size=64, max_size=64, workers=workers, with_labels=False, cuda=True)
        assert next(iter(loader))[0]["image"].is_pinned()


@pytest.mark.slow
def test_a_training_knows_how_long_it_stands_still_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that take long to read."""
    read = ImageCache.read

    def slow(self: ImageCache, path: str, shrink: int = 1) -> torch.Tensor:
        time.sleep(0.05)
        return read(self, path, shrink)

    monkeypatch.setattr(ImageCache, "read", slow)
    record = training.run(quick_experiment(method__name="baseline"), tmp_path)
    # Six steps of two images; those of the evaluation are not waited for by steps.
    assert 12 * 0.05 <= record.within_training["data_wait"] < record.seconds["training"]
    assert load(tmp_path / "record.json").data_wait == record.data_wait
