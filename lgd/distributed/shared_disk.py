"""Whether the nodes of a Ray cluster see the results directory: one disk, at the same path."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lgd.errors import InputError
from lgd.files import temporary_file
from lgd.storage import outputs

WAIT_S = 30.0
"""Nodes that have not answered by then are not waited for: they may have left."""

LOOKS, LOOK_INTERVAL_S = 10, 0.5
"""How often, and how far apart, a node looks: a network's file system may show a new file late."""


def check_shared(directory: Path, cpus: int, gpus: float) -> None:
    """Raise InputError, one line, where a node that could train does not see ``directory``.

    cpus, gpus: what a worker needs; nodes that have less are not asked.

    What it writes would stay on its own disk: checkpoints, logs and the trained detector; and the file that asks
    trainings to stop would never be seen there. With results in object storage every node has a disk of its own.
    """
    if outputs.store_of(directory) is not None:
        return
    mine = ray.get_runtime_context().get_node_id()
    others = {
        node["NodeID"]: node.get("NodeManagerHostname") or node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != mine
        if node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("GPU", 0) >= gpus
    }
    if not others:
        return
    directory.mkdir(parents=True, exist_ok=True)
    # Where this process is killed meanwhile, the next command removes it: under the lock that this one holds now.
    marker = temporary_file(directory.resolve() / "shared")
    look = ray.remote(num_cpus=0, max_retries=0)(_is_there)
    try:
        answers = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(marker)): name
            for node, name in others.items()
        }
        done, late = ray.wait(list(answers), num_returns=len(answers), timeout=WAIT_S)
        for answer in done:
            # A node that has left is no node that cannot see.
            with contextlib.suppress(ray.exceptions.RayError):
                if not ray.get(answer):
                    raise InputError(
                        f"node {answers[answer]} does not see {directory}: name a directory on a disk that all nodes"
                        " share, or object storage, such as --output s3://BUCKET/NAME"
                    )
        for answer in late:
            ray.cancel(answer, force=True)
    finally:
        marker.unlink(missing_ok=True)


def _is_there(path: str) -> bool:
    for _ in range(LOOKS):
        if Path(path).exists():
            return True
        time.sleep(LOOK_INTERVAL_S)
    return False
