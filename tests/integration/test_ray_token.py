"""A Ray cluster that starts here answers nobody without its token."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
    import ray

    from lgd.distributed.ray_train import cluster

    with cluster(None, cpus=1):
        address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        for given, expected in ((token, "let in"), ("0" * 64, "refused: ")):
            environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": given}
            command = [sys.executable, "-c", STRANGER, address]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert expected in done.stdout + done.stderr
    assert "RAY_AUTH_TOKEN" not in os.environ
