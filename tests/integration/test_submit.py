"""``lgd submit`` against a Ray cluster of this machine that asks for a token, with a dashboard and ports of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ablations.working_tree import pack
from tests.conftest import check_no_leftover_processes
from tests.integration.commands import QUICK

ROOT = Path(__file__).parents[2]

TOKEN = "0123456789abcdef" * 4

OTHERS = {
    "RAY_ADDRESS": "192.0.2.1:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "no_proxy": "127.0.0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip
"""Of the environment of the cluster and of whoever submits. RAY_ADDRESS is of another cluster: the one that is named
counts."""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The URL of the dashboard of a cluster of one core."""
    gcs, dashboard, client = free_ports(3)
    # Not pytest's directory: a socket's path must be short.
    directory = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={gcs}", "--num-cpus=1",
        "--num-gpus=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        "--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", f"--ray-client-server-port={client}",
        f"--temp-dir={directory}", "--object-store-memory=100000000", "--disable-usage-stats",
    ]  # fmt: skip
    environment = {**os.environ, **OTHERS, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    del environment["RAY_ADDRESS"]
    with check_no_leftover_processes():
        # It must inherit the mark of what is left over.
        environment["LGD_TEST_MARK"] = os.environ["LGD_TEST_MARK"]
        head = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert head.stdout is not None
            assert any("Ray runtime started" in line for line in head.stdout)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            # Not SIGKILL: it ends Ray's other processes.
            head.terminate()
            head.communicate(timeout=120)
            shutil.rmtree(directory, ignore_errors=True)


def submitting(address: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ablations.command", "submit", "--address", address, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **OTHERS, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def submitted(address: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    process = submitting(address, *arguments, **variables)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_a_wrong_or_missing_token_is_one_line(address: str) -> None:
    for variables in ({"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        status, _, err = submitted(address, "--", "sweep", "list", **variables)
        assert status == 2
        assert err.startswith(f"error: {address} does not accept the token: set the cluster's as RAY_AUTH_TOKEN")
        assert err.count("\n") == 1


@pytest.mark.slow
def test_the_exit_status_and_the_log_are_the_jobs(address: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    status, out, _ = submitted(address, "--", "sweep", "status", str(missing))
    assert status == 2
    assert f"error: {missing}" in out


@pytest.mark.slow
def test_every_process_of_a_job_runs_the_tree_that_was_sent_and_ctrl_c_leaves_a_checkpoint(
    address: str, tmp_path: Path
) -> None:
    """The command, Tune's trial and its training import lgd from what Ray unpacked, although one is installed here."""
    tree, loaded, output = tmp_path / "tree", tmp_path / "loaded", tmp_path / "output"
    loaded.mkdir()
    with zipfile.ZipFile(pack(ROOT, tmp_path)) as sent:
        sent.extractall(tree)
    with (tree / "lgd" / "__init__.py").open("a") as module:
        module.write(f"\nimport os, pathlib\npathlib.Path({str(loaded)!r}, str(os.getpid())).write_text(__file__)\n")
    process = submitting(
        address, "--working-dir", str(tree), "--", "sweep", "run", "components", "--arms", "baseline", "--cpus", "1",
        *QUICK, "--set", "schedule.steps=100000", "--output", str(output),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert any(", seed 0: step " in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, out + err
    assert "its trainings write checkpoints, 120 s at most; Ctrl-C again to leave it alone" in err
    assert "(checkpoint after step " in out
    assert list(output.glob("trials/*/checkpoints/step-*.pth"))
    paths = [Path(x.read_text()) for x in loaded.iterdir()]
    # The command and the trial, at least.
    assert len(paths) >= 2
    assert all("working_dir_files" in path.parts for path in paths)
