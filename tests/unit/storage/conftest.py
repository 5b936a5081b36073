"""Stores for the tests of this directory, and a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lgd.storage.store import Store
from tests.helpers_emulators import Azurite, azure, google
from tests.helpers_storage import BUCKET

SERVERS = {"s3": "faults", "gs": "gs", "az": "az"}
"""Fixtures, by scheme."""


@pytest.fixture(scope="session")
def gs() -> Iterator[None]:
    with google():
        yield


@pytest.fixture(scope="session")
def az() -> Iterator[Azurite]:
    with azure() as server:
        yield server


@pytest.fixture(params=["s3", "file", "memory", *(pytest.param(x, marks=pytest.mark.nightly) for x in ("gs", "az"))])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty one of each kind."""
    if request.param in SERVERS:
        request.getfixturevalue(SERVERS[request.param])
    top = f"file://{tmp_path}/store" if request.param == "file" else f"{request.param}://{BUCKET}"
    return Store(f"{top}/{tmp_path.name}", patience=10)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
