"""Stores for the tests of this directory, and a cache of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd.storage.store import Store
from tests.helpers_storage import BUCKET


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
