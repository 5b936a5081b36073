"""What tests of object storage share: an S3 server on this machine, which fails on demand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ablations.drill.s3_server import Faults as Faults
from ablations.drill.s3_server import s3_server as s3_server
from ablations.drill.s3_server import variables
from lgd.storage import store as storage

BUCKET = "bucket"


def use(patch: pytest.MonkeyPatch, address: str) -> None:
    """Let this process, and those that it starts, take the server at ``address`` for S3."""
    for name, value in variables(address).items():
        patch.setenv(name, value)


@pytest.fixture(scope="session")
def s3() -> Iterator[Faults]:
    """The server, used by this process and those that it starts; it has a bucket, and no faults."""
    with s3_server() as (address, faults), pytest.MonkeyPatch.context() as patch:
        use(patch, address)
        storage.filesystem("s3").mkdir(BUCKET)
        yield faults
        # Its connections are to a server that is gone.
        storage._filesystems.clear()


@pytest.fixture
def faults(s3: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The server's faults; what fails is tried again at once."""
    monkeypatch.setattr(storage, "LONGEST_PAUSE", 0.05)
    s3.clear()
    yield s3
    s3.clear()
