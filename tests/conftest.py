"""What holds for every test."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest
import torch

# Tiny networks on few cores: threads wait for each other longer than they work.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


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
            # multiprocessing's tracker ends with whoever started it, which may be this process.
            own = process.pid == os.getpid() or "resource_tracker" in command
            if not own and process.environ().get("LGD_TEST_MARK") == mark:
                found.append(command)
    return found
