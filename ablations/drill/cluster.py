"""Faults of a cluster: a lost node, and a worker that Ray ends for lack of memory.

Run as a module, this is the process that holds the drill's own cluster of several nodes on this machine.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from ablations.drill.checks import Failure
from ablations.drill.commands import ROOT, DrillError, Sandbox
from ablations.drill.drill import Drill, Fault

MEMORY_LEFT = 4.5 * 2**30
"""Bytes that may be used, besides what is in use before, until Ray ends a worker: more than the sweep takes itself."""

MEMORY_HELD = 6 * 2**30
"""Bytes that a trial's process allocates."""


class Nodes:
    """A cluster of a head without cores and a node that trains, each of processes of its own. Use as a context."""

    def __init__(self, place: Sandbox) -> None:
        self._place = place
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ablations.drill.cluster", *self._place.disk().values()],
            cwd=ROOT, env={**self._place.environment, **self.environment}, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.TimeoutExpired, OSError):
            self._process.communicate(timeout=60)
        self._process.kill()

    def ask(self, what: str) -> str:
        """Have the cluster do something: ``lose`` its node, ``add`` one, or count its placement ``groups``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return line.removeprefix("answer ").strip()
        raise DrillError("the drill's cluster of two nodes ended by itself")


class NodeLoss(Fault):
    """All processes of the node that trains are killed, and another node comes up."""

    name = "node-loss"
    summary = "the node that trains is lost (SIGKILL to all of its processes), and another one comes up"

    def inject(self, drill: Drill) -> None:
        with Nodes(drill.place) as nodes:
            moment = drill.at("step")
            command = drill.place.start([*drill.arguments, "--address", nodes.address], moment, nodes.environment)
            command.wait_for_moment()
            nodes.ask("lose")
            nodes.ask("add")
            command.go()
            drill.check_message(command.wait(), [0], r"its worker died; it goes on|its worker died; it begins again")
            groups = nodes.ask("groups")
            if groups != "0":
                drill.failures.append(Failure("nothing left", f"{groups} placement groups"))


class OutOfMemory(Fault):
    """A trial's process takes so much memory that Ray's monitor ends a worker."""

    name = "out-of-memory"
    summary = "a trial's process takes more memory than Ray's monitor allows"

    def missing(self) -> str:
        free = psutil.virtual_memory().available
        needed = MEMORY_HELD + 4 * 2**30
        return "" if free > needed else f"{free / 2**30:.0f} GiB of memory are free, {needed / 2**30:.0f} are needed"

    def inject(self, drill: Drill) -> None:
        memory = psutil.virtual_memory()
        threshold = (memory.total - memory.available + MEMORY_LEFT) / memory.total
        monitor = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
        moment = drill.at("step", act="hold memory", amount=int(MEMORY_HELD))
        done = drill.start(moment, monitor).wait()
        drill.check_message(done, [0], r"Ray ended its worker since memory ran low; it ")


CLUSTER: tuple[Fault, ...] = (NodeLoss(), OutOfMemory())


def _serve() -> None:
    """Hold the cluster, and do what is asked on standard input until that is closed."""
    import ray
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"object_store_memory": 150 * 2**20}
    # With a bucket the nodes share no disk.
    disks = ({"LGD_CACHE": f"{sys.argv[1]}/{i}"} if sys.argv[1:] else {} for i in itertools.count())
    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(Path(os.environ["RAY_TMPDIR"]) / "ray")}
    cluster = Cluster(initialize_head=True, head_node_args={**small, **head})
    node = cluster.add_node(num_cpus=2, **small, env_vars=next(disks))
    print("answer", cluster.address, flush=True)
    for line in sys.stdin:
        what, answer = line.strip(), "done"
        if what == "lose":
            for process in _processes_of(node):
                with suppress(psutil.Error):
                    process.kill()
            cluster.remove_node(node, allow_graceful=False)
        elif what == "add":
            node = cluster.add_node(num_cpus=2, **small, env_vars=next(disks))
        elif what == "groups":
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            groups = ray.util.placement_group_table().values()
            answer = str(sum(group["state"] != "REMOVED" for group in groups))
            ray.shutdown()
        print("answer", answer, flush=True)
    cluster.shutdown()


def _processes_of(node: Any) -> list[psutil.Process]:
    """The node's workers, then the node's own processes."""
    own = [psutil.Process(x.process.pid) for infos in node.all_processes.values() for x in infos]
    return [child for process in own for child in process.children(recursive=True)] + own


if __name__ == "__main__":
    _serve()
