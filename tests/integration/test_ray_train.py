"""One training over Ray's workers and nodes: real clusters on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lgd.data.mapper import ReadError, StoreReadError
from lgd.distributed import ray_train
from lgd.distributed.ray_token import own_token
from lgd.distributed.workers import Workers
from lgd.errors import InputError
from lgd.results.record import Record, load
from lgd.storage.mirror import Mirror
from lgd.storage.store import Store
from lgd.training import run as training
from lgd.training.__main__ import main
from tests.helpers import quick_experiment, unsaved, wait_until
from tests.helpers_storage import BUCKET
from tests.integration.commands import ROOT, size, training_command, training_settings, training_under
from tests.unit.distributed.test_ranks import ALIKE


def _saved_and_more(url: str, copy: Path) -> bool:
    """Whether a checkpoint to go on from is published, and word of work that it does not hold.

    What the lost node's disk has besides is lost with it. copy: a directory for what is published.
    """
    Mirror(copy, Store(url)).fetch()
    return unsaved(copy) > 0


def _check_losses(record: Record, alone: Record) -> None:
    """Those of one undisturbed worker: by rounding at first, later by what that became."""
    for name, curve in alone.losses.items():
        ours, theirs = [v for _, v in record.losses[name]], [v for _, v in curve]
        early = sum(step <= 12 for step, _ in curve)
        assert early
        assert ours[:early] == pytest.approx(theirs[:early], rel=2e-3), name
        # How much of the rounding there is by then depends on the processor.
        assert ours == pytest.approx(theirs, rel=0.1), name


@pytest.mark.slow
@pytest.mark.usefixtures("no_leftover_processes", "s3")
def test_a_lost_node_is_replaced_and_the_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, with a worker on each of two nodes; one node goes down with its worker, and another one comes up.

    Neither they nor the command share a disk: what is gone on from is in a bucket. The losses are those of one
    undisturbed worker.
    """
    from ray.cluster_utils import Cluster

    url = f"s3://{BUCKET}/{tmp_path.name}/run"

    def disk(name: str) -> dict[str, str]:
        return {"LGD_CACHE": str(tmp_path / name)}

    changes: dict[str, Any] = {"schedule.steps": 120, "checkpoint.every": 40, "schedule.lr": 0.001}
    arguments = [
        *("retinanet_r50_2x_ms", "--method", "lgd", "--workers", "2", "--spread", "--output", url),
        *training_settings("lgd", **changes),
    ]
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
    # The cluster's processes, this one and the command's authenticate each other.
    with own_token(), pytest.MonkeyPatch.context() as patch:
        # A dead node is noticed after this; by default after 15 s.
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "3")
        head = {**small, "include_dashboard": False, "env_vars": disk("head")}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        # Ray Train tells nodes apart by their address.
        lost = cluster.add_node(**small, node_ip_address="127.0.0.2", env_vars=disk("lost"))
        with training_under(cluster, *arguments, **disk("command")) as process:
            wait_until(lambda: _saved_and_more(url, tmp_path / "copy") or process.poll() is not None)
            assert process.poll() is None, process.communicate()[0]
            cluster.remove_node(lost, allow_graceful=False)
            cluster.add_node(**small, node_ip_address="127.0.0.3", env_vars=disk("added"))
            said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    record = Record.model_validate_json(Store(url).read("record.json") or b"")
    assert [x for x in Store(url).entries() if "checkpoints/" in x or x.startswith("ray/")] == []
    assert not list((tmp_path / "command").glob("outputs/*/run/ray"))
    assert (record.status, record.devices, record.nodes, record.attempts) == ("finished", 2, 2, 2)
    assert record.device_seconds["lost"] > 0
    _check_losses(record, training.run(quick_experiment(**{**ALIKE, **changes}), tmp_path / "alone"))
    # Called here: another process would take seconds to say so.
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "another"))
    assert main(arguments) == 0
    assert "trained already" in capsys.readouterr().out


@pytest.mark.slow
def test_signals_write_checkpoints_and_the_command_goes_on(tmp_path: Path) -> None:
    """SIGTERM, as a cluster's scheduler asks a job to go, then Ctrl-C; each time the same command goes on."""
    settings = training_settings(
        "baseline", **{"schedule.steps": 400, "detector.backbone.norm": "BN", "detector.backbone.width": 8}
    )
    arguments = ["retinanet_r50_2x_ms", "--method", "baseline", "--output", str(tmp_path), *settings]
    losses, reached = tmp_path / "metrics.json", [0]
    for number in (signal.SIGTERM, signal.SIGINT):
        before = size(losses)
        process = subprocess.Popen(
            training_command(*arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            # Once it writes losses it listens, too.
            wait_until(lambda: size(losses) > before or process.poll() is not None)  # noqa: B023
            assert process.poll() is None, "it ended before it could be told"
            os.kill(process.pid, number)
            said = process.communicate(timeout=240)[1]
        finally:
            process.kill()
        assert process.returncode == 130, said
        assert "the same command goes on from there" in said
        assert "\n" not in said.strip().splitlines()[-1]
        (newest, *_) = sorted((tmp_path / "checkpoints").iterdir(), reverse=True)
        reached.append(torch.load(newest, weights_only=True)["step"])
        assert reached[-2] < reached[-1] < 400
        assert not (tmp_path / "record.json").exists()
    done = subprocess.run(training_command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load(tmp_path / "record.json").attempts == 3


def _second_cannot_read(config: tuple[str, ReadError], _: int) -> InputError | None:
    directory, error = config
    (Path(directory) / f"{dist.get_rank()}-{os.getpid()}").touch()
    if dist.get_rank():
        return error
    # The step that waits for the other worker's part of the gradients.
    dist.all_reduce(torch.zeros(1))
    return None


@pytest.mark.slow
@pytest.mark.usefixtures("no_leftover_processes")
@pytest.mark.parametrize(
    ("error", "starts"),
    [(ReadError("1.jpg: cannot be decoded"), 1), (StoreReadError("s3://bucket/1.jpg: no answer for 300 s"), 2)],
)
def test_what_one_worker_cannot_read_ends_the_training(error: ReadError, starts: int, tmp_path: Path) -> None:
    """Without restarts, but where a store is away, which may answer the next start."""
    (tmp_path / "begun").mkdir()
    begun, config = time.monotonic(), (str(tmp_path / "begun"), error)
    with ray_train.cluster(None, 2):
        ended = ray_train.launch(_second_cannot_read, config, tmp_path, Workers(2, restarts=1))
    assert type(ended) is type(error)
    assert str(ended) == str(error)
    assert len(list((tmp_path / "begun").iterdir())) == 2 * starts
    # Gloo gives up after half an hour.
    assert time.monotonic() - begun < 300
