"""One Ray for all the sweeps that the tests of this directory run in one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lgd.distributed import ray_train
from tests.conftest import check_no_leftover_processes


@pytest.fixture(scope="package")
def ray_session() -> Iterator[None]:
    """A cluster of this machine, which the commands and sweeps of a process find started.

    What they started is gone when it has ended.
    """
    with check_no_leftover_processes(), ray_train.cluster(None, cpus=2):
        yield
