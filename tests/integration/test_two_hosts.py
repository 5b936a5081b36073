"""A training on two hosts: Ray's nodes in two network namespaces of this machine, whose link loses packets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lgd.results.record import load
from lgd.training import run as training
from tests import helpers_network as network
from tests.helpers import quick_experiment, unsaved, wait_until
from tests.integration.commands import ROOT, training_command, training_settings
from tests.integration.test_ray_train import _check_losses
from tests.unit.distributed.test_ranks import ALIKE

LOST = 0.02
"""Part of the packets that are lost: of millions, with Ray's own."""


class _Hosts:
    """Ray's head on host 0 and a node on host 1, of one core each.

    place: of Ray's sockets, whose paths must be short.
    """

    def __init__(self, directory: Path, place: str) -> None:
        self._place, self._said = place, directory / "ray.txt"
        self._environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0" * 64,
            # A dead node is noticed after this; by default after 15 s.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "10",
        }

    def on(self, host: int, *command: str, said: Path) -> subprocess.Popen[str]:
        """Start a command on a host."""
        with said.open("a") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", network.namespace(host), *command],
                cwd=ROOT, env=self._environment, text=True, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def start(self, host: int) -> None:
        """Start Ray on a host."""
        before = self._started()
        own = ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self._place}"]
        self.on(
            host, str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1",
            f"--node-ip-address={network.HOSTS[host]}", f"--object-store-memory={150 * 2**20}",
            *(own if host == 0 else [f"--address={network.HOSTS[0]}:6379"]), said=self._said,
        )  # fmt: skip
        wait_until(lambda: self._started() > before)

    def _started(self) -> int:
        return self._said.read_text().count("Ray runtime started") if self._said.exists() else 0


def _kill(host: int) -> None:
    """SIGKILL to all processes on a host."""
    said = subprocess.run(["ip", "netns", "pids", network.namespace(host)], capture_output=True, text=True, check=True)
    for pid in said.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def _hosts(directory: Path) -> Iterator[_Hosts]:
    with tempfile.TemporaryDirectory(prefix="lgd-", dir="/tmp", ignore_cleanup_errors=True) as place:
        try:
            yield _Hosts(directory, place)
        finally:
            for host in (1, 0):
                _kill(host)
            psutil.wait_procs(psutil.Process().children(), timeout=10)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_training_survives_lost_packets_and_a_lost_host(tmp_path: Path) -> None:
    """A host goes down in a step and comes back, while a packet in fifty is lost: the losses are one worker's."""
    why = network.missing()
    if why:
        pytest.skip(why)
    output, said = tmp_path / "run", tmp_path / "said.txt"
    changes: dict[str, Any] = {"schedule.steps": 60, "checkpoint.every": 20, "schedule.lr": 0.001}
    with network.two_hosts(LOST) as link, _hosts(tmp_path) as hosts:
        hosts.start(0)
        hosts.start(1)
        command = hosts.on(
            0,
            *training_command("retinanet_r50_2x_ms", "--method", "lgd", "--workers", "2", "--spread"),
            *("--address", f"{network.HOSTS[0]}:6379", "--output", str(output), *training_settings("lgd", **changes)),
            said=said,
        )
        # What is done since its last checkpoint will be lost.
        wait_until(lambda: unsaved(output) > 0 or command.poll() is not None)
        assert command.poll() is None, said.read_text()
        _kill(1)
        hosts.start(1)
        assert command.wait(400) == 0, said.read_text()
    assert link.dropped > 0.5 * LOST * link.carried > 100
    record = load(output / "record.json")
    assert (record.status, record.devices, record.nodes, record.attempts) == ("finished", 2, 2, 2)
    assert record.device_seconds["lost"] > 0
    _check_losses(record, training.run(quick_experiment(**{**ALIKE, **changes}), tmp_path / "alone"))
