"""Workers that come and go under Ray: a node is drained, and the training goes on with fewer."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest

from lgd.distributed import notice
from lgd.distributed.ray_token import own_token
from lgd.distributed.workers import Workers
from lgd.results.record import Record
from lgd.training import checkpoint
from lgd.training.worker import train_on_workers
from tests.helpers import quick_experiment
from tests.unit.distributed.test_ranks import ALIKE

GRACE_S = 10

SLOW_STEPS = """
import time
from ablations.import_patches import patch_on_import

def slow(module):
    run_step = module.Trainer.run_step

    def slow_step(self):
        # The node is to go while the training runs, on a fast machine as on a busy one.
        if module.ranks.world_size() == 2:
            time.sleep(0.2)
        run_step(self)

    module.Trainer.run_step = slow_step

patch_on_import({"lgd.training.trainer": slow})
"""


def _drain(address: str, node: str) -> None:
    """Tell Ray that a node will be taken away in GRACE_S, as an autoscaler does."""
    # No public function drains a node; the command needs the dashboard.
    raylet: Any = importlib.import_module("ray._raylet")
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    reason = messages.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline = int((time.time() + GRACE_S) * 1000)
    accepted, why = raylet.GcsClient(address=address).drain_node(node, reason, "taken away", deadline)
    assert accepted, why


@pytest.mark.slow
def test_a_drained_node_costs_no_step_and_the_others_go_on(
    tmp_path: Path, no_leftover_processes: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    """Two workers on two nodes, one of which goes: what was done by then is in a checkpoint that no period asks for."""
    from ray.cluster_utils import Cluster

    experiment = quick_experiment(
        **{**ALIKE, "method.name": "baseline", "schedule.steps": 300, "checkpoint.every": 0, "schedule.lr": 0.001}
    )
    patches = tmp_path_factory.mktemp("patches")
    (patches / "sitecustomize.py").write_text(SLOW_STEPS)
    monkeypatch.setenv("PYTHONPATH", str(patches))
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
    # Another test of this process may have started a cluster of its own before, which needs none.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    # At first Ray Train may ask for as many workers as before.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    drained: list[str] = []
    saved_after: list[int] = []
    with own_token():
        cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        try:
            going = cluster.add_node(**small, node_ip_address="127.0.0.2")

            def on_progress(progress: dict[str, Any]) -> None:
                if not drained:
                    drained.append(going.node_id)
                    _drain(cluster.address, going.node_id)
                elif not saved_after and checkpoint.last_step(tmp_path):
                    saved_after.append(checkpoint.last_step(tmp_path) or 0)

            record = train_on_workers(
                experiment,
                tmp_path,
                Workers(2, minimum=1, restarts=0),
                address=cluster.address,
                on_progress=on_progress,
            )
        finally:
            cluster.shutdown()
    assert isinstance(record, Record)
    # Without a restart to spare: being drained is no failure.
    assert (record.status, record.fewest_devices, record.devices, record.attempts) == ("finished", 1, 2, 2)
    assert saved_after
    # At most what was done since the last of the notice's checkpoints, by two workers.
    assert 0 < record.device_seconds["lost"] < 2 * (notice.REPEAT_S + 10)
