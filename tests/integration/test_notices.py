"""A notice that comes to part of the work: SIGTERM to one of a training's workers, a drained node under a sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lgd.distributed import notice
from lgd.distributed.ray_token import own_token
from lgd.results.record import Record, load
from lgd.training import checkpoint
from tests.helpers import wait_until
from tests.integration.commands import ROOT, size, training_settings, training_under
from tests.integration.test_elastic import drain, patched_by

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("no_leftover_processes")]

SMALL: dict[str, Any] = {"object_store_memory": 150 * 2**20}

RAY_START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]

STEPS = 200

SETTINGS: dict[str, Any] = {"schedule.steps": STEPS, "checkpoint.every": 0, "schedule.lr": 0.001}

SLOW_FIRST_STEPS = """
import time
from ablations.import_patches import patch_on_import

def slow(module):
    run_step = module.Trainer.run_step

    def slow_step(self):
        # The notice is to come while the training runs, on a fast machine as on a busy one.
        if self.iter < 120:
            time.sleep(0.2)
        run_step(self)

    module.Trainer.run_step = slow_step

patch_on_import({"lgd.training.trainer": slow})
"""


def _actors(name: str) -> list[psutil.Process]:
    """Processes of Ray's actors of that name that this test started, by process number."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get("LGD_TEST_MARK") == os.environ["LGD_TEST_MARK"]
            if ours and " ".join(process.cmdline()).startswith(f"ray::{name}"):
                found.append(process)
    return sorted(found, key=lambda x: x.pid)


def _check_whole(record: Record, directory: Path) -> None:
    """Every step was done once, but for what was done after the last checkpoint."""
    logged = [json.loads(x)["iteration"] for x in (directory / "metrics.json").read_text().splitlines()]
    assert logged == sorted(set(logged))
    assert (record.status, record.steps, record.attempts) == ("finished", STEPS, 2)
    assert checkpoint.last_step(directory) is None


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_workers_gets_sigterm(which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main one, and the other: both write a checkpoint together, and Ray Train starts both again."""
    from ray.cluster_utils import Cluster

    arguments = [
        *("retinanet_r50_2x_ms", "--method", "baseline", "--workers", "2", "--restarts", "1", "--yes"),
        *("--output", str(tmp_path / "run"), *training_settings("baseline", **SETTINGS)),
    ]
    patched_by(SLOW_FIRST_STEPS, tmp_path / "patches", monkeypatch)
    losses = tmp_path / "run" / "metrics.json"
    with own_token():
        head = {**SMALL, "num_cpus": 2, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        with training_under(cluster, *arguments) as process:
            wait_until(lambda: size(losses) > 0 or process.poll() is not None)
            workers = _actors("RayTrainWorker")
            assert len(workers) == 2
            workers[which].send_signal(signal.SIGTERM)
            said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    record = load(losses.with_name("record.json"))
    _check_whole(record, losses.parent)
    # The checkpoint is of the step at which it came: nothing was done twice but for a step or two.
    assert record.device_seconds["lost"] < 10


@pytest.mark.parametrize("by", ["drain", "SIGTERM"])
def test_a_node_that_goes_under_a_sweep(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial writes a checkpoint while its node is still there, and goes on from it on another one.

    An autoscaler drains the node; or ``ray start --block``, which holds it, gets SIGTERM, as in a pod.
    """
    from ray.cluster_utils import Cluster

    output = tmp_path / "sweep"
    changes = training_settings("baseline", **SETTINGS)
    patched_by(SLOW_FIRST_STEPS, tmp_path / "patches", monkeypatch)
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    trial = output / "trials" / "baseline-seed0"
    with own_token(), ExitStack() as stack:
        head = {**SMALL, "num_cpus": 0, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        stack.callback(cluster.shutdown)
        if by == "drain":
            added = cluster.add_node(**SMALL, num_cpus=1)
        else:
            started = subprocess.Popen(
                [*RAY_START, "--address", cluster.address, "--num-cpus", "1", "--object-store-memory", str(150 * 2**20)]
            )
            stack.callback(started.kill)
        command = [
            *(sys.executable, str(ROOT / "ablations" / "run.py"), "--grid", "components", "--preset", "nano"),
            *("--arms", "baseline", "--output", str(output), "--address", cluster.address, *changes),
        ]
        if by != "drain":
            # It is to have joined.
            time.sleep(10)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stack.callback(process.kill)
        wait_until(lambda: size(trial / "metrics.json") > 0 or process.poll() is not None)
        drain(cluster.address, added.node_id) if by == "drain" else started.terminate()
        wait_until(lambda: checkpoint.last_step(trial) is not None or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        cluster.remove_node(added, allow_graceful=False) if by == "drain" else started.wait(60)
        cluster.add_node(**SMALL, num_cpus=1)
        said = process.communicate(timeout=400)[0]
    assert process.returncode == 0, said
    record = load(trial / "record.json")
    _check_whole(record, trial)
    assert record.device_seconds["lost"] < notice.REPEAT_S + 10
