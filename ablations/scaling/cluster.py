"""A sweep of stub trainings on a cluster whose nodes come and go: nothing may be lost or done twice.

The nodes are Ray's own, several on this machine, and told of GPUs that are not there. Once in a while, at random from a
seed, one of them is lost with all of its processes (SIGKILL), or another one joins.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from filelock import FileLock, Timeout

from ablations.scaling.processes import ROOT, CommandFailedError, Row
from ablations.scaling.stub_training import CONTROL, SITECUSTOMIZE, STEP_S, Event, events
from ablations.scaling.sweeps import ARMS, SETTINGS
from ablations.trial_config import STOP_FILE
from lgd.distributed import ray_train
from lgd.distributed.ray_token import own_token
from lgd.errors import InputError
from lgd.files import TEMPORARY
from lgd.results.record import FILE, load
from lgd.training.checkpoint import DIRECTORY

STEPS, STEP_SECONDS = 8, 0.25

PAUSE_S = (2.0, 6.0)
"""Between one coming or going of a node and the next: at least, at most."""

LONGEST_START_S, LONGEST_SWEEP_S = 300.0, 1800.0


class Kind(NamedTuple):
    """The resources of a node."""

    cpus: int
    gpus: int = 0


KINDS = (Kind(1), Kind(2, 1), Kind(2, 8))
"""Of the nodes that come and go: without a GPU, with one, with eight."""

NODES = 8
"""At first and at most. At least half of them are there."""


class FakeCluster:
    """A cluster of a head without cores and of nodes, on this machine. A context manager, in the main thread.

    Its processes, and those of commands that are started inside, run stub trainings, which note what they do
    (:meth:`events`). code: of their ``sitecustomize``.
    """

    def __init__(self, *, step_seconds: float, code: str = SITECUSTOMIZE) -> None:
        # Short, since the path of a socket may have no more than 107 characters.
        self.place = Path(tempfile.mkdtemp(prefix="lgd-nodes-"))
        (self.place / "site").mkdir()
        (self.place / "site" / "sitecustomize.py").write_text(code, encoding="utf-8")
        path = os.pathsep.join(filter(None, [str(self.place / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._environment = {
            "PYTHONPATH": path,
            CONTROL: str(self.place),
            STEP_S: str(step_seconds),
            "RAY_worker_niceness": "0",
            # A dead node is noticed after this; by default after 15 s.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        self._nodes: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        from ray.cluster_utils import Cluster

        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.place, ignore_errors=True)
            stack.enter_context(_variables(self._environment))
            stack.enter_context(own_token())
            head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(self.place / "ray")}
            with _start_errors():
                self._cluster = Cluster(initialize_head=True, head_node_args=head)
            stack.callback(self._cluster.shutdown)
            self.address = str(self._cluster.address)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, kind: Kind, environment: Mapping[str, str] | None = None, *, wait: bool = True) -> str:
        """Start a node; its id. wait: until it has joined, which is to be done in the end (:meth:`wait`).

        Raises CommandFailedError where it does not start.
        """
        resources = {"num_cpus": kind.cpus, "num_gpus": kind.gpus, "object_store_memory": 100 * 2**20}
        with _start_errors():
            node = self._cluster.add_node(**resources, env_vars=dict(environment or {}), wait=False)
        self._nodes[str(node.node_id)] = node
        if wait:
            self.wait()
        return str(node.node_id)

    def wait(self) -> None:
        """Wait until all nodes have joined. Raises CommandFailedError where one does not."""
        with _start_errors():
            self._cluster.wait_for_nodes(timeout=LONGEST_START_S)

    def lose(self, node: str) -> None:
        """Kill all processes of a node at once, its workers first, as when a machine goes."""
        lost = self._nodes.pop(node)
        own = [psutil.Process(x.process.pid) for infos in lost.all_processes.values() for x in infos]
        for process in [*(child for x in own for child in x.children(recursive=True)), *own]:
            with suppress(psutil.Error):
                process.kill()
        self._cluster.remove_node(lost, allow_graceful=False)

    @property
    def nodes(self) -> list[str]:
        """Ids of the nodes that are there, besides the head."""
        return list(self._nodes)

    def events(self) -> list[Event]:
        """What the trials of all sweeps have done."""
        return events(self.place)

    def start(self, *arguments: str, said: Path) -> subprocess.Popen[bytes]:
        """Start ``ablations/run.py`` with these arguments, on this cluster. said: where its output goes."""
        with said.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "ablations" / "run.py"), *arguments, "--address", self.address],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def placement_groups(self) -> int:
        """How many there are that were not removed."""
        import ray

        with ray_train.cluster(self.address):
            return sum(x["state"] != "REMOVED" for x in ray.util.placement_group_table().values())


@contextmanager
def _start_errors() -> Iterator[None]:
    """Raise CommandFailedError for a node that does not start inside."""
    try:
        yield
    except Exception as error:  # whichever of its processes was not there in Ray's 30 seconds
        reason = " ".join(str(error).split())[:100]
        raise CommandFailedError(f"a node did not start ({reason}): try again when it is less busy here") from None


@contextmanager
def _variables(given: Mapping[str, str]) -> Iterator[None]:
    """Inside, these environment variables are set."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def sweep_arguments(trials: int, steps: int = STEPS) -> list[str]:
    """Of a sweep of so many trials, an even number."""
    sets = (f"schedule.steps={steps}", "checkpoint.every=1", "device=auto", *SETTINGS)
    return [
        *("--grid", "components", "--preset", "nano", "--arms", ",".join(ARMS), "--seeds", str(trials // len(ARMS))),
        *("--cpus", "1", "--yes", *(x for setting in sets for x in ("--set", setting))),
    ]


@dataclass
class Attempt:
    """One process's work on a trial, from its begin to the last that it noted."""

    trial: str
    node: str
    begun: float
    last: float


def attempts(found: Sequence[Event]) -> list[Attempt]:
    """By the time of their begin."""
    made: list[Attempt] = []
    at_work: dict[tuple[str, int], Attempt] = {}
    for x in found:
        if x.step == 0:
            at_work[x.trial, x.pid] = Attempt(x.trial, x.node, x.time, x.time)
            made.append(at_work[x.trial, x.pid])
        at_work[x.trial, x.pid].last = x.time
    return sorted(made, key=lambda x: x.begun)


def most_at_once(made: Sequence[Attempt]) -> dict[str, int]:
    """By node: how many trials ran there at the same time, at most."""
    by_node: dict[str, list[Attempt]] = defaultdict(list)
    for x in made:
        by_node[x.node].append(x)
    return {
        node: max(sum(other.begun <= x.begun <= other.last for other in own) for x in own)
        for node, own in by_node.items()
    }


def failures(output: Path, trials: int, made: Sequence[Attempt], steps: int = STEPS) -> list[str]:
    """What is wrong with a finished sweep's directory: a line each, that names what was seen. made: its attempts."""
    found, by_name = [], defaultdict[str, list[Attempt]](list)
    for attempt in made:
        by_name[attempt.trial.rpartition("/")[2]].append(attempt)
    records = {path.parent.name: path for path in sorted(output.glob(f"trials/*/{FILE}"))}
    if len(records) != trials:
        found.append(f"{len(records)} of {trials} trials have a record")
    for name, path in records.items():
        try:
            record = load(path)
        except InputError as error:
            found.append(str(error))
            continue
        if record.status != "finished":
            found.append(f"{name} {record.status}: {record.reason}")
            continue
        done = [step for step, _ in record.losses["loss"]]
        if done != list(range(1, steps + 1)) or record.steps != steps:
            found.append(f"{name}: the steps {done}, not each of {steps} once")
        own = by_name[name]
        if record.attempts != len(own):
            found.append(f"{name}: {record.attempts} attempts in the record, {len(own)} seen")
        if any(earlier.last > later.begun for earlier, later in pairwise(own)):
            found.append(f"{name}: two processes were at work on it at once")
    table = output / "records.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline=""))) if table.exists() else []
    counted = Counter((row["arm"], row["seed"]) for row in rows)
    if len(counted) != trials or set(counted.values()) != {1}:
        found.append(f"records.csv has {len(rows)} rows of {len(counted)} trials")
    return [*found, *_left(output)]


def _left(output: Path) -> list[str]:
    """What a sweep must not leave in its directory."""
    found = [
        f"left: {path.relative_to(output)}"
        for path in sorted(output.rglob("*"))
        if TEMPORARY.fullmatch(path.name) or path.name in (DIRECTORY, STOP_FILE, "meter.json")
    ]
    try:
        with FileLock(output / "lock", timeout=0):
            pass
    except Timeout:
        found.append("the lock is held")
    return found


def measure_cluster(trials: int, directory: Path, seed: int = 0) -> Iterator[Row]:
    """A sweep of so many trials on NODES nodes that come and go. Raises CommandFailedError where something is wrong."""
    rng, output, kinds = random.Random(seed), directory / "out", [KINDS[i % len(KINDS)] for i in range(NODES)]
    directory.mkdir(parents=True)
    with FakeCluster(step_seconds=STEP_SECONDS) as cluster:
        for kind in kinds:
            cluster.add(kind, wait=False)
        cluster.wait()
        begun, said = time.monotonic(), directory / "said.txt"
        process = cluster.start(*sweep_arguments(trials), "--gpus", "0", "--output", str(output), said=said)
        try:
            lost, added = _come_and_go(cluster, process, rng, begun)
        finally:
            process.kill()
        took, noted, groups = time.monotonic() - begun, cluster.events(), cluster.placement_groups()
    made = attempts(noted)
    wrong = failures(output, trials, made)
    if process.returncode:
        last = said.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        wrong.insert(0, f"the sweep ended with {process.returncode}: {' '.join(last)}")
    if groups:
        wrong.append(f"{groups} placement groups are left")
    wrong += [f"a process is left: {line}" for line in _processes(cluster.place)]
    if wrong:
        raise CommandFailedError("; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""))
    for quantity, unit, value in (
        ("whole sweep", "s", took),
        ("nodes at first", "", NODES),
        ("nodes lost", "", lost),
        ("nodes that joined", "", added),
        ("trials side by side on a node, at most", "", max(most_at_once(made).values())),
        ("attempts", "", len(made)),
        ("steps", "", sum(x.step > 0 for x in noted)),
        ("steps that count", "", trials * STEPS),
        ("records finished", "", trials),
    ):
        yield Row("cluster", trials, quantity, unit, float(value))


def _come_and_go(
    cluster: FakeCluster, process: subprocess.Popen[bytes], rng: random.Random, begun: float
) -> tuple[int, int]:
    """Until the command ends, nodes are lost and join. How many of both."""
    lost = added = 0
    while process.poll() is None:
        if time.monotonic() - begun > LONGEST_SWEEP_S:
            raise CommandFailedError(f"the sweep had not ended after {LONGEST_SWEEP_S:.0f} s")
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(*PAUSE_S))
            break
        if not cluster.events():
            # Before the first trial there is nothing to lose.
            continue
        there = len(cluster.nodes)
        if there == NODES or (there > NODES // 2 and rng.random() < 0.5):
            cluster.lose(rng.choice(cluster.nodes))
            lost += 1
        else:
            cluster.add(rng.choice(KINDS))
            added += 1
    return lost, added


def _processes(place: Path) -> list[str]:
    """Command lines of the processes that were started for this place, half a minute after its end."""
    deadline = time.monotonic() + 30
    while (left := _marked(place)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _marked(place: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(CONTROL) == str(place):
                found.append(" ".join(process.cmdline())[:100])
    return found
