"""What a Tune trial is told of its workers' ends. Without Ray's processes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from lgd.data.mapper import StoreReadError
from lgd.distributed import ranks, ray_train
from lgd.distributed.messages import Messages
from lgd.distributed.workers import Workers
from lgd.errors import InputError
from lgd.storage.store import StorageError

LOST = RayTaskError("run", "RuntimeError: Connection closed by peer", RuntimeError("Connection closed by peer"))
killed: list[Any] = []
"""Workers of the last launch."""

AWAY = StoreReadError("s3://bucket/1.jpg: no answer for 300 s")


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Launches workers, by rank, that end with these results; an error of Ray's is raised."""

    def get(result: Any) -> Any:
        if isinstance(result, list):
            return [get(x) for x in result]
        if isinstance(result, RayError):
            raise result
        return result

    def launch(*ends: Any) -> Any:
        address, run = (lambda: "host:1"), (lambda _work, _config, _messages, _backend, rank, *_: ends[rank])
        member = {"address": SimpleNamespace(remote=address), "run": SimpleNamespace(remote=run)}
        actor = SimpleNamespace(remote=lambda: SimpleNamespace(**member))
        monkeypatch.setattr(ray_train, "_TrainWorker", SimpleNamespace(options=lambda **_: actor))
        killed.clear()
        return ray_train.launch_in_placement_group(lambda *_: None, None, Workers(len(ends)))

    # It would start a cluster.
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda x, num_returns=1, timeout=0.0: (x[:num_returns], x[num_returns:]))
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(Messages, "get", lambda *_: "")
    monkeypatch.setattr(Messages, "remove", lambda _: None)
    return launch


def test_an_error_that_one_worker_returned_is_why_the_others_lost_the_connection(
    launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch(LOST, AWAY) is AWAY
    assert launch(AWAY, LOST) is AWAY
    assert isinstance(AWAY, StorageError)
    assert isinstance(AWAY, InputError)
    # The other one may be in a step, where NCCL waits for minutes: what the launcher waits for is ended.
    waited: list[Any] = []

    def wait(results: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        waited.append(results)
        return results[:1], results[1:]

    monkeypatch.setattr(ray, "wait", wait)
    assert launch(AWAY, "a worker in a step") is AWAY
    assert len(waited) == 1
    assert len(killed) == 2
    assert launch("the main worker's", None) == "the main worker's"


def test_a_worker_that_died_and_one_that_failed_are_told_apart(launch: Callable[..., Any]) -> None:
    with pytest.raises(RayActorError):
        launch(LOST, ActorDiedError())
    with pytest.raises(RuntimeError, match="^RuntimeError: Connection closed by peer$"):
        launch(LOST, None)


@pytest.mark.parametrize("lost", [OutOfMemoryError("the node ran low on memory"), NodeDiedError("its node died")])
def test_a_worker_that_ray_ended_for_its_node_died_too(launch: Callable[..., Any], lost: RayError) -> None:
    # Ray calls neither an actor's death, and Tune's trial would be over.
    assert not isinstance(lost, RayActorError)
    with pytest.raises(RayActorError, match=str(lost)):
        launch("the main worker's", lost)
    assert len(killed) == 2
    # The other one noticed first.
    with pytest.raises(RayActorError, match=str(lost)):
        launch(LOST, lost)


def test_an_error_travels_from_every_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    monkeypatch.setattr(ray_train, "_to_launcher", None)
    monkeypatch.setenv(ranks.NODE_VARIABLE, "")
    monkeypatch.setattr(ranks, "is_main_process", lambda: False)
    assert ray_train._run(lambda *_: AWAY, None, 0, Messages()) is AWAY
    assert ray_train._run(lambda *_: "as the main worker's", None, 0, Messages()) is None
