"""Workers that come and go under Ray: a node is drained, and the training goes on with fewer; another one joins."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest

from lgd.distributed import notice
from lgd.distributed.ray_token import own_token
from lgd.results.record import Record, load
from lgd.storage.store import Store
from lgd.training import checkpoint
from tests.helpers import wait_until
from tests.helpers_storage import BUCKET, Faults
from tests.integration.commands import size, training_settings, training_under

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

LOOK_OFTEN = """
import time
from ablations.import_patches import patch_on_import

def often(module):
    module.RESIZE_INTERVAL_S = 5.0

def slow(module):
    run_step = module.Trainer.run_step

    def slow_step(self):
        # Until there are two, which are to do some of it.
        if module.ranks.world_size() == 1 and self.iter < 250:
            time.sleep(0.2)
        run_step(self)

    module.Trainer.run_step = slow_step

patch_on_import({"lgd.training.trainer": slow, "lgd.distributed.ray_train": often})
"""


def drain(address: str, node: str) -> None:
    """Tell Ray that a node will be taken away in GRACE_S, as an autoscaler does."""
    # No public function drains a node; the command needs the dashboard.
    raylet: Any = importlib.import_module("ray._raylet")
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    reason = messages.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    deadline = int((time.time() + GRACE_S) * 1000)
    accepted, why = raylet.GcsClient(address=address).drain_node(node, reason, "taken away", deadline)
    assert accepted, why


def patched_by(code: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``code`` in every Python process that is started from now on."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(directory))


@pytest.mark.slow
def test_a_drained_node_costs_no_step_and_the_others_go_on(
    tmp_path: Path, no_leftover_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers on two nodes, one of which goes: what was done by then is in a checkpoint that no period asks for."""
    from ray.cluster_utils import Cluster

    changes: dict[str, Any] = {"schedule.steps": 300, "checkpoint.every": 0, "schedule.lr": 0.001}
    arguments = [
        *("retinanet_r50_2x_ms", "--method", "baseline", "--elastic", "1:2", "--restarts", "0", "--yes"),
        *("--output", str(tmp_path / "run"), *training_settings("baseline", **changes)),
    ]
    patched_by(SLOW_STEPS, tmp_path / "patches", monkeypatch)
    # Another test of this process may have started a cluster of its own before, which needs none.
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    # At first Ray Train may ask for as many workers as before.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
    losses = tmp_path / "run" / "metrics.json"
    with own_token():
        cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        going = cluster.add_node(**small, node_ip_address="127.0.0.2")
        with training_under(cluster, *arguments) as process:
            wait_until(lambda: size(losses) > 0 or process.poll() is not None)
            drain(cluster.address, going.node_id)
            wait_until(lambda: checkpoint.last_step(losses.parent) is not None or process.poll() is not None)
            assert process.poll() is None, "it ended without a checkpoint"
            said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    record = load(losses.with_name("record.json"))
    # Without a restart to spare: being drained is no failure.
    assert (record.status, record.fewest_devices, record.devices, record.attempts) == ("finished", 1, 2, 2)
    # At most what was done since the last of the notice's checkpoints, by two workers.
    assert 0 < record.device_seconds["lost"] < 2 * (notice.REPEAT_S + 10)


@pytest.mark.nightly
def test_a_node_that_joins_is_used_and_needs_no_disk_of_the_others(
    tmp_path: Path, no_leftover_processes: None, monkeypatch: pytest.MonkeyPatch, s3: Faults
) -> None:
    """One worker on one node, then two on two, each with a disk of its own: what is gone on from is in a bucket."""
    from ray.cluster_utils import Cluster

    url = f"s3://{BUCKET}/{tmp_path.name}"
    changes: dict[str, Any] = {"schedule.steps": 300, "checkpoint.every": 10, "schedule.lr": 0.001}
    arguments = [
        *("retinanet_r50_2x_ms", "--method", "baseline", "--elastic", "1:2", "--restarts", "0", "--yes"),
        *("--output", f"{url}/run", *training_settings("baseline", **changes)),
    ]
    patched_by(LOOK_OFTEN, tmp_path / "patches", monkeypatch)
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 * 2**20}

    def disk(name: str) -> dict[str, str]:
        return {"LGD_CACHE": str(tmp_path / name)}

    with own_token():
        head = {**small, "include_dashboard": False, "env_vars": disk("head")}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        with training_under(cluster, *arguments, **disk("command")) as process:
            wait_until(lambda: any("checkpoints/" in x for x in Store(url).entries()) or process.poll() is not None)
            cluster.add_node(**small, node_ip_address="127.0.0.2", env_vars=disk("joined"))
            said = process.communicate(timeout=500)[0]
    assert process.returncode == 0, said
    record = Record.model_validate_json(Store(f"{url}/run").read("record.json") or b"")
    assert (record.status, record.steps, record.fewest_devices, record.devices) == ("finished", 300, 1, 2)
    assert record.attempts == 2
    assert [x for x in Store(url).entries() if "checkpoints/" in x] == []
