"""Whether other nodes see the results directory. Without Ray's processes."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import NodeDiedError

from lgd.distributed import shared_disk
from lgd.distributed.shared_disk import check_shared
from lgd.errors import InputError
from lgd.files import remove_temporary_files


def _node(name: str, cpus: int = 4, *, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus} if cpus else {}
    return {"NodeID": name, "NodeManagerHostname": f"host-{name}", "Alive": alive, "Resources": resources}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What nodes other than the driver's, "here", have answered. "blind" has a disk of its own; "gone" has died."""
    found: list[tuple[str, bool]] = []

    def look(path: str, node: str) -> Any:
        if node == "gone":
            return NodeDiedError("its node died")
        found.append((node, Path(path).exists() and node != "blind"))
        return found[-1][1]

    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def remote(**_: Any) -> Any:
        def options(scheduling_strategy: Any) -> Any:
            node = scheduling_strategy.node_id
            return SimpleNamespace(remote=lambda path: _Answer(look(path, node)))

        return lambda _: SimpleNamespace(options=options)

    # Ray's own takes the numbers of its nodes alone.
    monkeypatch.setattr(
        shared_disk, "NodeAffinitySchedulingStrategy", lambda node, soft: SimpleNamespace(node_id=node, soft=soft)
    )
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "wait", lambda x, **_: (x, []))
    monkeypatch.setattr(ray, "get", lambda x: get(x.value))
    return found


class _Answer:
    def __init__(self, value: Any) -> None:
        self.value = value


def test_a_directory_that_one_node_does_not_see_is_refused(
    asked: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = [_node("here"), _node("a"), _node("head", 1), _node("left", alive=False), _node("gone")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    check_shared(tmp_path / "results", 2, 0.0)
    # Only what could train is asked, and what has left meanwhile cannot be.
    assert asked == [("a", True)]
    nodes.append(_node("blind"))
    with pytest.raises(
        InputError, match="^node host-blind does not see .*results: name a directory on a disk that all"
    ):
        check_shared(tmp_path / "results", 2, 0.0)
    assert list((tmp_path / "results").iterdir()) == []
    # No trial with a GPU can be placed on any of them.
    check_shared(tmp_path / "results", 2, 0.5)


def test_what_is_left_by_a_command_that_is_killed_meanwhile_the_next_one_removes(
    asked: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [_node("here"), _node("a")])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        check_shared(tmp_path, 2, 0.0)
    assert asked == [("a", True)]
    assert len(list(tmp_path.iterdir())) == 1
    remove_temporary_files(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_node_is_not_asked(asked: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [_node("here")])
    check_shared(tmp_path / "results", 2, 0.0)
    assert asked == []
    assert not (tmp_path / "results").exists()


def test_what_appears_late_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    monkeypatch.setattr(time, "sleep", lambda _: marker.touch())
    assert shared_disk._is_there(str(marker))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert not shared_disk._is_there(str(tmp_path / "another"))
