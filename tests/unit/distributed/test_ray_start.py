"""How a process answers SIGTERM while Ray starts, and what does not start it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import pytest

from lgd.distributed import ray_train
from lgd.signals import interrupt, keep_handlers, on_signal


def _by_ray(number: int, _: object) -> None:
    sys.exit(number)


@pytest.fixture(autouse=True)
def starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray installs its handler first, as ``ray.init`` does, and starts nothing; then SIGTERM comes."""

    def init(**_: Any) -> None:
        importlib.import_module("ray._private.utils").set_sigterm_handler(_by_ray)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_command_that_answers_sigterm_does_so_while_ray_starts(address: str | None) -> None:
    """Ray's handler would end it without a word: neither what happened nor how to go on."""
    before = importlib.import_module("ray._private.utils").set_sigterm_handler
    with pytest.raises(KeyboardInterrupt), on_signal(interrupt, signal.SIGTERM), ray_train.cluster(address):
        pass
    assert importlib.import_module("ray._private.utils").set_sigterm_handler is before


def test_where_nobody_answers_it_ray_does() -> None:
    with pytest.raises(SystemExit), keep_handlers(signal.SIGTERM):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with ray_train.cluster(None):
            pass


def test_whether_a_node_is_drained_starts_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training's thread asks, which may outlive the cluster by a moment; Ray starts one to answer."""
    monkeypatch.setattr("ray._private.auto_init_hook.enable_auto_connect", True)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    assert not ray_train.node_is_drained()
