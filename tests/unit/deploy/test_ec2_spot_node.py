"""deploy/ec2_spot_node.sh, run here with stand-ins for ray and curl, which answers as EC2's metadata service."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "ec2_spot_node.sh"

STAND_INS = {
    # It ends as Ray does when it has left the cluster.
    "ray": """
trap 'echo "ray got TERM" >> "$NOTES/calls"; exit 15' TERM
echo "$RAY_AUTH_MODE" >> "$NOTES/auth"
echo "ray $*" >> "$NOTES/calls"
while [ ! -e "$NOTES/over" ]; do sleep 0.02; done
exit 7""",
    # Without the token the service refuses (401); without a notice there is no such page (404).
    "curl": """
url="${*: -1}"
echo asked >> "$NOTES/asked"
case "$*" in
    *"--request PUT"*"token-ttl-seconds: 60"*/latest/api/token) echo t0k3n ;;
    *"X-aws-ec2-metadata-token: t0k3n"*/latest/meta-data/spot/instance-action) cat "$NOTES/notice" || exit 22 ;;
    *) exit 22 ;;
esac""",
}


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    told = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path), "POLL_SECONDS": "0.02"}
    here = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    with subprocess.Popen(
        [str(SCRIPT), "--address", "head:6379"], env={**here, **told}, stderr=subprocess.DEVNULL, text=True
    ) as started:
        yield started
        (tmp_path / "over").touch()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_ray_gets_sigterm_when_the_instance_is_to_be_taken(process: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for(lambda: len(lines(tmp_path / "asked")) >= 6 and bool(lines(tmp_path / "calls")))
    assert lines(tmp_path / "calls") == ["ray start --block --address head:6379"]
    # Without it whoever reaches the node's ports runs code there.
    assert lines(tmp_path / "auth") == ["token"]
    (tmp_path / "notice").write_text('{"action": "terminate", "time": "2026-11-26T22:02:00Z"}')
    assert process.wait(timeout=30) == 15
    assert lines(tmp_path / "calls")[1:] == ["ray got TERM"]


def test_it_ends_when_ray_does(process: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / "over").touch()
    assert process.wait(timeout=30) == 7


def test_sigterm_goes_on_to_ray(process: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for(lambda: bool(lines(tmp_path / "calls")) and bool(lines(tmp_path / "asked")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 15
