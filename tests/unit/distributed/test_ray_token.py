"""The token of a Ray cluster that starts here, and who may be asked for another one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lgd.distributed import ray_token, ray_train


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray is started with, its token included; nothing is started."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        calls.append({**options, "token": os.environ.get("RAY_AUTH_TOKEN")})

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_cluster_that_starts_here_has_a_token_of_its_own(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with ray_train.cluster(None, cpus=1):
            assert os.environ["RAY_AUTH_TOKEN"] == started[-1]["token"]
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert len(started[0]["token"]) == 64
    assert started[0]["token"] == started[1]["token"]
    assert (started[0]["dashboard_host"], started[0]["include_dashboard"]) == ("127.0.0.1", False)
    # The user's own stays.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with ray_train.cluster(None, cpus=1):
        pass
    assert started[-1]["token"] == os.environ["RAY_AUTH_TOKEN"] == "mine"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/file")
    with ray_train.cluster(None, cpus=1):
        pass
    assert started[-1]["token"] is None


def test_another_cluster_has_its_own(started: list[dict[str, Any]]) -> None:
    with ray_train.cluster("auto"):
        pass
    assert started == [{"address": "auto", "log_to_driver": False, "logging_level": "ERROR", "token": None}]


@pytest.mark.parametrize("where", ["variable", "file", "nowhere", "turned off"])
def test_a_token_that_is_there_is_used(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ray_token.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    # Set first, so that it is as before after the test.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray_token, "TOKEN_FILE", tmp_path / "auth_token")
    if where == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    elif where != "nowhere":
        (tmp_path / "auth_token").write_text("mine")
    if where != "turned off":
        del os.environ["RAY_AUTH_MODE"]
    ray_token.use_token()
    expected = {"nowhere": None, "turned off": "disabled"}
    assert os.environ.get("RAY_AUTH_MODE") == expected.get(where, "token")
