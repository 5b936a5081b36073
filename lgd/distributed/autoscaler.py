"""The nodes that the autoscaler of a Ray cluster may add, such as those of a GPU group that has none yet."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lgd.distributed.workers import Node

UNLIMITED = 64
"""Nodes that a group without a limit is taken to have at most."""


def nodes_to_come(there: Sequence[Node]) -> list[Node]:
    """Those that may be added to the nodes ``there``; none where the cluster that Ray is connected to does not scale.

    A node that is there counts as one of the group that has its resources.
    """
    left, found = Counter(there), list[Node]()
    for group in _groups():
        node = Node(group.resources.get("CPU", 0), group.resources.get("GPU", 0))
        most = UNLIMITED if group.max_count < 0 else group.max_count
        running = min(left[node], most)
        left[node] -= running
        found += [node] * (most - running)
    return found


def _groups() -> Sequence[Any]:
    """Of the configuration that the autoscaler has told the cluster (Ray's ``NodeGroupConfig``)."""
    from ray._private.state import state

    # No public function tells it; Ray Train asks for it in the same way.
    with contextlib.suppress(Exception):
        config = state.get_cluster_config()
        return list(config.node_group_configs) if config else []
    return []
