"""A Ray cluster that starts here answers nobody without its token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lgd.distributed.ray_token import TOKEN_VARIABLES

ROOT = Path(__file__).parents[2]

OWNER = """
import os, sys, ray
from lgd.distributed.ray_train import cluster
with cluster(None, cpus=1):
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    sys.stdin.readline()
print("left", "RAY_AUTH_TOKEN" in os.environ)
"""

STRANGER = """
import ray, sys
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(f"refused: {type(error).__name__}")
print("let in")
"""


@pytest.mark.slow
def test_a_stranger_is_refused(no_leftover_processes: None) -> None:
    """The cluster is another process's: this one may have one of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        address, token = owner.stdout.readline().split()
        assert len(token) == 64
        for given, expected in ((token, "let in"), ("0" * 64, "refused: ")):
            asked = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": given}
            command = [sys.executable, "-c", STRANGER, address]
            done = subprocess.run(command, env=asked, capture_output=True, text=True, timeout=120)
            assert expected in done.stdout + done.stderr
        assert owner.communicate("\n", timeout=120)[0].strip() == "left False"
    finally:
        owner.kill()
