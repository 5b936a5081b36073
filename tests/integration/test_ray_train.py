"""One training over Ray's workers and nodes: real clusters on this machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lgd.distributed import ray_train
from lgd.distributed.ray_train import Workers
from lgd.errors import InputError
from lgd.results.record import load
from lgd.training import run as training
from lgd.training.worker import train_on_workers
from tests.helpers import quick_experiment, unsaved, wait_until
from tests.unit.distributed.test_ranks import ALIKE

ROOT = Path(__file__).parents[2]


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lgd.train", *arguments]


def _settings(**changes: Any) -> list[str]:
    """A quick experiment as --set options for one of the paper's."""
    from lgd.config.experiment import settings

    quick = settings(quick_experiment(**{**ALIKE, **changes}))
    skipped = ("method.name", "seed")
    return [
        x
        for key, value in quick.items()
        if key not in skipped
        for x in ("--set", f"{key}={'auto' if value is None else json.dumps(value)}")
    ]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_training_goes_on(tmp_path: Path, no_leftover_processes: None) -> None:
    """The command, with two workers of which one is killed: the losses are those of one undisturbed worker."""
    changes: dict[str, Any] = {"schedule.steps": 60, "checkpoint.every": 30, "schedule.lr": 0.001}
    output = tmp_path / "out put"
    process = subprocess.Popen(
        _command(
            "retinanet_r50_2x_ms", "--method", "lgd", "--workers", "2", "--output", str(output), *_settings(**changes)
        ),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: unsaved(output) > 0 or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        victims = [
            x for x in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(x.cmdline())
        ]
        assert len(victims) == 2
        victims[-1].kill()
        said = process.communicate(timeout=300)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    record = load(output / "record.json")
    assert (record.status, record.devices, record.attempts) == ("finished", 2, 2)
    assert record.device_seconds["lost"] > 0
    alone = training.run(quick_experiment(**{**ALIKE, **changes}), tmp_path / "alone")
    for name, curve in alone.losses.items():
        assert [v for _, v in record.losses[name]] == pytest.approx([v for _, v in curve], rel=0.05), name
    again = subprocess.run(
        _command(
            "retinanet_r50_2x_ms", "--method", "lgd", "--workers", "2", "--output", str(output), *_settings(**changes)
        ),
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "trained already" in again.stdout


@pytest.mark.slow
def test_workers_spread_over_two_nodes(tmp_path: Path) -> None:
    """Two real Ray nodes of one machine, a worker on each."""
    import ray
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        # Ray Train tells nodes apart by their address.
        cluster.add_node(**small, node_ip_address="127.0.0.2")
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        experiment = quick_experiment(**ALIKE)
        with pytest.raises(InputError, match="3 workers .* on a node of its own can never run here"):
            train_on_workers(experiment.override({"schedule.batch": 6}), tmp_path / "x", Workers(3, spread=True))
        record = train_on_workers(experiment, tmp_path / "out", Workers(2, spread=True))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (record.status, record.devices, record.nodes) == ("finished", 2, 2)
    alone = training.run(experiment, tmp_path / "alone")
    for name, curve in alone.losses.items():
        assert [v for _, v in record.losses[name]] == pytest.approx([v for _, v in curve], rel=2e-3), name


@pytest.mark.slow
def test_a_lost_node_is_replaced_and_the_training_goes_on(tmp_path: Path) -> None:
    """A worker on each of two nodes; one node goes down with its worker, and another one comes up."""
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    process = None
    try:
        lost = cluster.add_node(**small, node_ip_address="127.0.0.2")
        changes: dict[str, Any] = {"schedule.steps": 120, "checkpoint.every": 60, "schedule.lr": 0.001}
        command = _command(
            "retinanet_r50_2x_ms", "--method", "baseline", "--workers", "2", "--spread", "--address", cluster.address,
            "--output", str(tmp_path / "out"), *_settings(**changes),
        )  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_until(lambda: unsaved(tmp_path / "out") > 0 or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(**small, node_ip_address="127.0.0.3")
        said = process.communicate(timeout=300)[0]
    finally:
        if process is not None and process.poll() is None:
            process.kill()
        cluster.shutdown()
    assert process.returncode == 0, said
    record = load(tmp_path / "out" / "record.json")
    assert (record.status, record.devices, record.nodes, record.attempts) == ("finished", 2, 2, 2)
    assert record.device_seconds["lost"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_command_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    """As a cluster's scheduler asks a job to go."""
    settings = _settings(**{"schedule.steps": 400, "detector.backbone.norm": "BN", "detector.backbone.width": 8})
    command = _command("retinanet_r50_2x_ms", "--method", "baseline", "--output", str(tmp_path), *settings)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        # Begun, and so listening.
        wait_until(lambda: (tmp_path / "metrics.json").exists() or process.poll() is not None)
        assert process.poll() is None, "it ended before it could be told"
        os.kill(process.pid, number)
        said = process.communicate(timeout=240)[1]
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert "\n" not in said.strip().splitlines()[-1]
    (newest, *_) = sorted((tmp_path / "checkpoints").iterdir(), reverse=True)
    assert 0 < torch.load(newest, weights_only=True)["step"] < 400
    assert not (tmp_path / "record.json").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load(tmp_path / "record.json").attempts == 2


@pytest.mark.parametrize(
    ("workers", "changes", "words"),
    [
        (Workers(0), {}, "--workers 0"),
        (Workers(3), {}, "schedule.batch 4 does not split over 3 workers"),
        (Workers(2), {"schedule.accumulate": 4}, "does not split over 2 workers in 4 parts each"),
        (Workers(2, gpus=2), {}, "--gpus-per-worker 2"),
        (Workers(2, gpus=1), {}, "device cpu"),
        (Workers(2), {"device": "auto", "precision": "fp16"}, "precision fp16 needs a GPU"),
        (Workers(2, cpus=0), {}, "--cpus-per-worker 0"),
        (Workers(2, restarts=-1), {}, "--restarts -1"),
    ],
)
def test_what_cannot_run_is_refused_before_ray_starts(
    workers: Workers, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        train_on_workers(quick_experiment(**{**ALIKE, **changes}), tmp_path, workers)


def test_no_cluster_is_one_line() -> None:
    with pytest.raises(InputError, match="no Ray cluster at '127.0.0.1:1'") as caught, ray_train.cluster("127.0.0.1:1"):
        pass
    assert "\n" not in str(caught.value)
