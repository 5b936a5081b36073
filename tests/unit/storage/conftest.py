"""An S3 server for the tests of this directory, and a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lgd.storage import store as storage
from lgd.storage.store import Store
from tests.helpers_storage import BUCKET, Faults, s3_server, use


@pytest.fixture(scope="session")
def s3() -> Iterator[Faults]:
    with s3_server() as (address, faults), pytest.MonkeyPatch.context() as patch:
        use(patch, address)
        storage.filesystem("s3").mkdir(BUCKET)
        yield faults
        # Its connections are to a server that is gone.
        storage._filesystems.clear()


@pytest.fixture
def faults(s3: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    monkeypatch.setattr(storage, "LONGEST_PAUSE", 0.05)
    s3.clear()
    yield s3
    s3.clear()


@pytest.fixture(params=["s3", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty one of each kind."""
    if request.param == "s3":
        request.getfixturevalue("faults")
    top = {"s3": f"s3://{BUCKET}", "file": f"file://{tmp_path}/store", "memory": "memory://bucket"}[request.param]
    return Store(f"{top}/{tmp_path.name}", patience=10)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
