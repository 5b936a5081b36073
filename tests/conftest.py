"""What holds for every test."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from filelock import FileLock

# Tiny networks on few cores: threads wait for each other longer than they work. Read when torch and NumPy are imported,
# here and in the processes that tests start.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import torch  # noqa: E402

# One server for all modules of a process: its buckets are the process's.
from tests.helpers_storage import faults as faults  # noqa: E402
from tests.helpers_storage import s3 as s3  # noqa: E402

T = TypeVar("T")

torch.set_num_threads(1)

# What asks Ray something by mistake where none is running fails, instead of starting one. Read when Ray is imported.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

# Ray runs its workers at niceness 15 where nothing is said; beside a busy pytest process they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

CTRL_C = signal.getsignal(signal.SIGINT)
"""The handler before any test."""

LONGEST_FIRST = (
    "test_faults", "test_drill", "test_optuna_search", "test_ray_train", "test_elastic", "test_gpu_session",
    "test_sweep_command", "test_many_nodes", "test_overfit", "test_load", "test_detectors_from_elsewhere",
    "test_submit", "test_prediction", "test_pays",
)  # fmt: skip
"""Modules that are begun first, so that no long test is left for the end, when the other process has nothing to do."""


def once_per_run(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """Return the result of ``make``, called once for all of pytest-xdist's worker processes; it must be picklable.

    make: gets a new directory. The other processes wait for it.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The directory that all workers of this run share.
        root = root.parent
    result, directory = root / f"{name}.pickle", root / name
    with FileLock(root / f"{name}.lock"):
        if not result.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            result.write_bytes(pickle.dumps(make(directory)))
        found: T = pickle.loads(result.read_bytes())
    return found


def pytest_collection_finish() -> None:
    # What the test modules have imported stays to the end. Every training collects garbage, and would look at it again.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "nightly" not in config.option.markexpr:
        left_out = [x for x in items if x.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [x for x in items if x not in left_out]
    order = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(autouse=True)
def ctrl_c_is_answered_as_before() -> Iterator[None]:
    """No test leaves a handler of Ctrl-C behind, as Ray Tune and Ray Train do: later tests of this process send it."""
    yield
    assert signal.getsignal(signal.SIGINT) == CTRL_C


@contextmanager
def check_no_leftover_processes() -> Iterator[None]:
    """No process that is started inside, at however many removes, is left running afterwards."""
    mark = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGD_TEST_MARK", mark)
        yield
    # Ray's own processes take their time to go on a busy machine; strays never go.
    deadline = time.monotonic() + 120
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert _marked(mark) == []


@pytest.fixture
def no_leftover_processes() -> Iterator[None]:
    """No process that the test started is left running after it."""
    with check_no_leftover_processes():
        yield


def _marked(mark: str) -> list[str]:
    """Command lines of the other processes that inherited the mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            # multiprocessing's tracker and fork server end with whoever started them, which may be this process.
            own = process.pid == os.getpid() or "resource_tracker" in command
            own = own or ("forkserver" in command and process.ppid() == os.getpid())
            if not own and process.environ().get("LGD_TEST_MARK") == mark:
                found.append(command)
    return found
