"""One training over many workers and nodes, under Ray Train.

Each worker is a process with a GPU of its own (or with CPU cores alone) that runs :func:`lgd.training.run.run`; gradients are
averaged by DistributedDataParallel over NCCL (Gloo on the CPU). A worker or node that dies is replaced, and all go on
from the last checkpoint, which lies in the run's directory: with several nodes that must be on storage they share.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by Ray when it is imported, or when it starts.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # How soon a worker's end, good or bad, is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from lgd.config.experiment import Experiment, parse  # noqa: E402
from lgd.distributed import ranks  # noqa: E402
from lgd.errors import InputError  # noqa: E402
from lgd.files import write_text  # noqa: E402
from lgd.results.record import Record  # noqa: E402
from lgd.signals import on_signal  # noqa: E402
from lgd.training import run as training  # noqa: E402
from lgd.training.resume import existing_record  # noqa: E402

PROGRESS_FILE = "progress.json"
STOP_FILE = "stop"
POLL = 1.0
"""Seconds between two looks at a running training's progress."""


@dataclass(frozen=True)
class Workers:
    """What a training is spread over.

    count: workers. gpus: of each, 1, a fraction for one worker to share a GPU with others' trainings, or 0 for the CPU.
    cpus: of each. spread: every worker on a node of its own. restarts: how often a group that lost a worker is started
    again.
    """

    count: int
    gpus: float = 0.0
    cpus: int = 1
    spread: bool = False
    restarts: int = 3

    def check(self, experiment: Experiment) -> None:
        """Raise InputError for what can never run."""
        if self.count < 1:
            raise InputError(f"--workers {self.count}: at least one")
        if not 0 <= self.gpus <= 1:
            raise InputError(f"--gpus-per-worker {self.gpus:g}: a worker trains on one GPU, a part of one, or none (0)")
        if self.cpus < 1:
            raise InputError(f"--cpus-per-worker {self.cpus}: at least one")
        if self.restarts < 0:
            raise InputError(f"--restarts {self.restarts}: a whole number from 0")
        share = self.count * experiment.schedule.accumulate
        if experiment.schedule.batch % share:
            raise InputError(
                f"schedule.batch {experiment.schedule.batch} does not split over {self.count} workers"
                + (f" in {experiment.schedule.accumulate} parts each" if experiment.schedule.accumulate > 1 else "")
            )
        if self.count > 1 and 0 < self.gpus < 1:
            raise InputError(f"{self.count} workers of {self.gpus:g} GPU: workers of one training need a GPU each")
        if self.gpus and experiment.device == "cpu":
            raise InputError("device cpu: ask for no GPUs, or set device=auto")
        if not self.gpus and experiment.device == "cuda":
            raise InputError("device cuda: a worker needs a GPU, or a part of one, and 0 are asked for")
        if not self.gpus and experiment.precision == "fp16":
            raise InputError("precision fp16 needs a GPU: use bf16 or fp32 on the CPU")

    def check_fits(self) -> None:
        """Raise InputError when the cluster could never hold them, however empty. Ray must be started."""
        self.max_concurrent(nodes())

    def max_concurrent(self, there: Sequence[Node]) -> int:
        """How many such groups of workers fit into these nodes at once. Raises InputError where not one ever does."""
        # A part of a GPU is a part of one: what two have left over makes no third.
        room = [
            min(_fits(node.cpus, self.cpus), int(node.gpus) * _fits(1, self.gpus) if self.gpus else sys.maxsize)
            for node in there
        ]
        groups = sum(room) // self.count
        while self.spread and groups and sum(min(x, groups) for x in room) < groups * self.count:
            groups -= 1
        if not groups:
            had = ", ".join(f"{x.cpus:g} CPU and {x.gpus:g} GPU" for x in there)
            many = f"{self.count} workers" if self.count > 1 else "one worker"
            each = " each" if self.count > 1 else ""
            where = " on a node of its own" if self.spread else ""
            raise InputError(
                f"{many} of {self.cpus} CPU and {self.gpus:g} GPU{each}{where} can never run here: the nodes have {had}"
            )
        return groups


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster has."""

    cpus: float
    gpus: float


def nodes() -> list[Node]:
    """The nodes of the cluster that Ray is connected to."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(x.get("CPU", 0), x.get("GPU", 0)) for x in found]


def _fits(there: float, wanted: float) -> int:
    return math.floor(there / wanted + 1e-9)


@contextlib.contextmanager
def cluster(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """The Ray cluster at ``address``; without one, that of RAY_ADDRESS, else one of this machine for the block.

    cpus: that a cluster of this machine has (default: its cores).
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            _reach(address)
            ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"no Ray cluster at {address!r} ({' '.join(str(error).split())[:200]})") from None
    else:
        # Workers exchange settings and progress only: the default store, a third of the memory, would be wasted.
        ray.init(
            address="local", num_cpus=cpus or cores(), include_dashboard=False, object_store_memory=200 * 2**20, **quiet
        )
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError where nobody answers at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=10):
            pass


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    experiment: Experiment,
    directory: Path,
    workers: Workers | Callable[[Sequence[Node]], Workers],
    *,
    address: str | None = None,
    preset: str = "",
    arm: str = "",
    overrides: Sequence[str] = (),
    teachers: Path | None = None,
    on_progress: Callable[[training.Progress], None] = lambda _: None,
) -> Record:
    """As :func:`lgd.training.run.run`, over ``workers``. Needs Ray's cluster (see :func:`cluster`) only while it runs.

    workers: may be chosen by what the cluster has. SIGTERM writes a checkpoint and ends in training.Stopped. Raises
    InputError before anything starts for what cannot run, and RuntimeError, in one line, when the workers failed more
    often than ``workers.restarts``.
    """
    # Here, not at the top: it takes seconds to import.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    if isinstance(workers, Workers):
        workers.check(experiment)
    directory = directory.resolve()
    with cluster(address):
        if not isinstance(workers, Workers):
            workers = workers(nodes())
            workers.check(experiment)
        workers.check_fits()
        directory.mkdir(parents=True, exist_ok=True)
        for left in (STOP_FILE, PROGRESS_FILE):
            (directory / left).unlink(missing_ok=True)
        trainer = TorchTrainer(
            _work,  # type: ignore[arg-type]  # Ray's types know of no return value
            train_loop_config={
                "experiment": experiment.model_dump(mode="json"),
                "directory": str(directory),
                "teachers": str((teachers or directory.parent / "teachers").resolve()),
                "names": {"preset": preset, "arm": arm, "overrides": list(overrides)},
                "stops": [str(directory / STOP_FILE)],
                "cpus": workers.cpus,
                "gpus": workers.gpus,
            },
            torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers.count,
                use_gpu=workers.gpus > 0,
                resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
                placement_strategy="STRICT_SPREAD" if workers.spread else "PACK",
            ),
            run_config=RunConfig(
                # A name used before would resume that run's own state; the state that counts is in the checkpoints.
                name=f"{time.time_ns():x}",
                storage_path=str(directory / "ray"),
                failure_config=FailureConfig(max_failures=workers.restarts),
            ),
        )
        # Ray answers SIGTERM in its own way from when it is started.
        with _followed(directory, on_progress), on_signal((directory / STOP_FILE).touch, signal.SIGTERM):
            try:
                result = trainer.fit()
            except SystemExit:
                # Ray Train's answer to Ctrl-C.
                raise KeyboardInterrupt from None
            except Exception as error:
                raise RuntimeError(_reason(error)) from error
        shutil.rmtree(directory / "ray", ignore_errors=True)
    outcome: dict[str, Any] = result.return_value  # type: ignore[attr-defined]  # Ray types the older Result
    if "refused" in outcome:
        raise InputError(outcome["refused"])
    if "stopped" in outcome:
        raise training.Stopped(outcome["stopped"])
    return Record.model_validate_json(outcome["record"])


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """What each of Ray Train's workers does."""
    # Ray Train shows its workers every GPU of their node.
    device = 0
    if config["gpus"]:
        from ray.train.torch import get_device

        device = get_device().index or 0
    return _share(config, device)


def _share(config: dict[str, Any], device: int) -> dict[str, Any]:
    """Train as one of the workers that share a training, whose process group is up.

    Returns what happened, as plain values: the first worker's answer is the run's. device: the GPU's number.
    """
    directory = Path(config["directory"])
    experiment = prepared(parse(config["experiment"]), config["cpus"], config["gpus"], device)
    os.environ[ranks.NODE_VARIABLE] = ray.get_runtime_context().get_node_id()

    def on_progress(progress: training.Progress) -> None:
        with contextlib.suppress(OSError):
            write_text(directory / PROGRESS_FILE, json.dumps(progress))

    stops = [Path(x) for x in config["stops"]]
    try:
        # A worker may have died after all was done and saved.
        saved = ranks.run_on_all_ranks(lambda: _finished(directory, experiment), first_only=True)
        record = saved or training.run(
            experiment,
            directory,
            **config["names"],
            teachers=Path(config["teachers"]),
            on_progress=on_progress,
            should_stop=lambda: any(x.exists() for x in stops),
            share=config["gpus"] or 1.0,
        )
    except InputError as error:
        return {"refused": str(error)}
    except training.Stopped as stopped:
        return {"stopped": stopped.step}
    return {"record": record.model_dump_json()}


def _finished(directory: Path, experiment: Experiment) -> Record | None:
    """The record of this very training in ``directory``, when it is finished."""
    record = existing_record(directory, experiment)
    return record if record and record.status == "finished" else None


def prepared(experiment: Experiment, cpus: int, gpus: float, device: int = 0) -> Experiment:
    """The experiment as a worker with these resources runs it, this process set up for it."""
    if gpus:
        torch.cuda.set_device(device)
    elif experiment.device == "auto":
        # A worker without a share of a GPU must not use one that others were given.
        experiment = experiment.model_copy(update={"device": "cpu"})
    return experiment if experiment.threads else experiment.model_copy(update={"threads": cpus})


@ray.remote(max_restarts=0)
class _Member:
    """A worker of a training that runs inside resources that somebody else holds, such as a sweep's trial."""

    def address(self) -> str:
        """Where the first worker can be met."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def work(self, config: dict[str, Any], rank: int, world: int, address: str) -> dict[str, Any]:
        # One GPU, or a part of one, is all that this process sees.
        backend = "nccl" if config["gpus"] else "gloo"
        dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=world)
        outcome = _share(config, device=0)
        # Not after an error: it might wait for workers that wait for this one.
        dist.destroy_process_group()
        return outcome


def run_in_placement_group(
    config: dict[str, Any], workers: Workers, on_progress: Callable[[training.Progress], None]
) -> dict[str, Any]:
    """Train over workers in the placement group that this task or actor holds, whose bundles are theirs in order.

    Whoever holds the group frees all of it: nothing is left when the holder is killed. A worker that dies takes the
    others with it, and all start again from the last checkpoint, ``workers.restarts`` times; then RuntimeError.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group: Any = ray.util.get_current_placement_group()
    progress = Path(config["directory"]) / PROGRESS_FILE
    for attempt in range(workers.restarts + 1):
        members = [
            _Member.options(  # type: ignore[attr-defined]
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
            ).remote()
            for i in range(workers.count)
        ]
        try:
            address = ray.get(members[0].address.remote())
            answers = [x.work.remote(config, i, workers.count, address) for i, x in enumerate(members)]
            waiting, seen = list(answers), ""
            while waiting:
                done, waiting = ray.wait(waiting, timeout=POLL)
                # Raises for the first that failed: the others would wait for it.
                ray.get(done)
                with contextlib.suppress(OSError, ValueError):
                    text = progress.read_text(encoding="utf-8")
                    if text != seen:
                        seen = text
                        on_progress(json.loads(text))
            return dict(ray.get(answers[0]))
        except ray.exceptions.RayError as error:
            if attempt == workers.restarts:
                raise RuntimeError(_reason(error)) from error
        finally:
            for member in members:
                ray.kill(member)
            progress.unlink(missing_ok=True)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _followed(directory: Path, on_progress: Callable[[training.Progress], None]) -> Iterator[None]:
    """While the block runs, a thread passes on the progress that the first worker writes down."""
    ended = threading.Event()

    def follow() -> None:
        seen = ""
        while not ended.wait(POLL):
            with contextlib.suppress(OSError, ValueError):
                text = (directory / PROGRESS_FILE).read_text(encoding="utf-8")
                if text != seen:
                    seen = text
                    on_progress(json.loads(text))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for left in (STOP_FILE, PROGRESS_FILE):
            (directory / left).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """One line from Ray's account of what the workers died of."""
    failures = getattr(error, "worker_failures", None) or {}
    texts = [str(x) for x in failures.values()] or [str(error)]
    # The last line of a traceback says what was raised.
    lines = [line.strip() for line in texts[0].splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
