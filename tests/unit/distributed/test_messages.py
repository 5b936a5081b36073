"""What a launcher tells its workers arrives whatever fails meanwhile. Without Ray's processes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray.experimental import internal_kv as kv

from lgd.distributed import ray_train
from lgd.distributed.messages import LauncherEnd, Messages, WorkerEnd


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The cluster's store of keys and values."""
    found: dict[str, bytes] = {}

    def put(key: str, text: str, **_: Any) -> None:
        found[key] = text.encode()

    monkeypatch.setattr(kv, "_internal_kv_put", put)
    monkeypatch.setattr(kv, "_internal_kv_get", lambda key, **_: found.get(key))
    monkeypatch.setattr(kv, "_internal_kv_del", lambda *_, **__: None)
    return found


def test_the_wish_to_stop_is_told_again_where_the_head_did_not_answer(
    told: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*_: Any, **__: Any) -> None:
        raise ConnectionError("the head does not answer")

    end = LauncherEnd(Messages(), lambda _: None)
    end.stop.set()
    with monkeypatch.context() as away:
        away.setattr(kv, "_internal_kv_put", put)
        end.poll()
    assert told == {}
    end.poll()
    assert WorkerEnd(end.messages).asked_to_stop()


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O operation on closed file")])
def test_the_wish_to_stop_is_told_where_progress_can_be_shown_no_more(
    error: Exception, told: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``lgd train ... --workers 2 | head``."""
    monkeypatch.setattr(ray_train, "POLL_INTERVAL_S", 0.01)
    shown, asked = threading.Event(), threading.Event()

    def show(_: dict[str, Any]) -> None:
        shown.set()
        raise error

    def put(*_: Any, **__: Any) -> None:
        asked.set()

    end = LauncherEnd(Messages(), show)
    WorkerEnd(end.messages).report({"step": 1})
    monkeypatch.setattr(kv, "_internal_kv_put", put)
    with ray_train._polled(end):
        assert shown.wait(10)
        end.stop.set()
        assert asked.wait(2)
