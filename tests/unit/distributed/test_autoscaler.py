"""Nodes that an autoscaler may add count for what a sweep or a training may hold."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import ray

from ablations.limits import Placement
from ablations.placement import resources_for
from lgd.config.grids import Trial
from lgd.distributed import ray_train
from lgd.distributed.autoscaler import UNLIMITED, nodes_to_come
from lgd.distributed.workers import Node
from tests.helpers import quick_experiment

HEAD = Node(8, 0)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the cluster one that scales, with groups of so many CPUs, GPUs, and nodes at most."""
    messages = importlib.import_module("ray.core.generated.autoscaler_pb2")

    def scales(*found: tuple[int, int, int]) -> None:
        config = messages.ClusterConfig()
        for number, (cpus, gpus, most) in enumerate(found):
            resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
            config.node_group_configs.add(name=str(number), resources=resources, max_count=most)
        state = importlib.import_module("ray._private.state").state
        monkeypatch.setattr(state, "get_cluster_config", lambda: config)

    return scales


def test_a_cluster_that_does_not_scale_has_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("ray._private.state").state, "get_cluster_config", lambda: None)
    assert nodes_to_come([HEAD]) == []


def test_groups_add_what_they_lack(groups: Any) -> None:
    groups((8, 0, 1), (16, 1, 3), (4, 0, -1))
    running = [HEAD, Node(16, 1)]
    assert nodes_to_come(running) == [Node(16, 1)] * 2 + [Node(4, 0)] * UNLIMITED


def test_a_group_with_gpus_that_has_no_node_yet_is_used(
    groups: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups((16, 2, 3))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    trials = [Trial(f"arm{i}", quick_experiment(device="auto"), tmp_path) for i in range(10)]
    found = resources_for(trials, ray_train.nodes(), Placement())
    assert (found.gpus, found.cpus, found.max_concurrent) == (1.0, 8, 6)
