"""Launches work on several worker processes, over one or more nodes, under Ray.

The work is a function that :func:`launch` (Ray Train) or :func:`launch_in_placement_group` (inside a trial of Ray Tune)
runs in every worker, with torch.distributed's process group set up: NCCL with GPUs, else Gloo. The main process reports
its progress through the cluster (lgd/distributed/messages.py).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read by Ray when it is imported, or when it starts.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # One process for each core, which no actor is given: trials and workers are actors.
    "RAY_prestart_worker_first_driver": "0",
    # Seconds until Ray Train notices that a worker has ended.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import torch.distributed as dist  # noqa: E402

from lgd.background import called_every  # noqa: E402
from lgd.distributed import notice, ranks  # noqa: E402
from lgd.distributed.autoscaler import nodes_to_come  # noqa: E402
from lgd.distributed.interface import use_interface_of_node  # noqa: E402
from lgd.distributed.messages import LauncherEnd, Messages, OnProgress, WorkerEnd  # noqa: E402
from lgd.distributed.ray_token import own_token  # noqa: E402
from lgd.distributed.workers import Node as Node  # noqa: E402
from lgd.distributed.workers import Workers as Workers  # noqa: E402
from lgd.errors import InputError  # noqa: E402
from lgd.signals import keep_handlers, on_signal  # noqa: E402

POLL_INTERVAL_S = 1.0
"""Seconds between two looks of the launcher at the progress."""

RESIZE_INTERVAL_S = 60.0
"""Seconds between two looks of Ray Train whether elastic workers can be more, or should be fewer."""

PEER_EXIT_TIMEOUT_S = 10.0
"""Seconds to wait for the other workers' ends once one worker has failed, to tell which one failed first."""

Work = Callable[[Any, int], Any]
"""The function that every worker runs: one of a module, given ``config`` and the number of its GPU (0 without one).
Its arguments and result must be picklable; the main process's return value is the result."""

_to_launcher: WorkerEnd | None = None
"""In a worker."""


def nodes() -> list[Node]:
    """The nodes of the cluster that Ray is connected to, and those that its autoscaler may add."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = [Node(x.get("CPU", 0), x.get("GPU", 0)) for x in found]
    return there + nodes_to_come(there)


@contextlib.contextmanager
def cluster(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at ``address`` or RAY_ADDRESS; without either, start one here for the block.

    cpus: of a cluster on this machine (default: its cores). Raises InputError where no cluster answers, or none starts.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = address or os.environ.get("RAY_ADDRESS")
    # A process of Ray Train's own that looks for nodes which are drained, so that moving away from one is no failure.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1" if address else "0")
    if address:
        try:
            _reach(address)
            with _sigterm_answered_as_before():
                ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"no Ray cluster at {address!r} ({' '.join(str(error).split())[:200]})") from None
        with _until_shutdown():
            yield
        return
    # glibc would keep free memory for each thread of a worker process, and a trial's peak would grow with its place in
    # the sweep (tests/integration/test_identical_trials.py). Read when a process starts.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    with own_token():
        # Only settings and records go through the object store; its default size is a third of the memory.
        local: dict[str, Any] = {"include_dashboard": False, "dashboard_host": "127.0.0.1"}
        try:
            with _sigterm_answered_as_before():
                ray.init(address="local", num_cpus=cpus or cores(), object_store_memory=200 * 2**20, **local, **quiet)
        except Exception as error:  # whichever of its processes was not there in time
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"Ray did not start on this machine ({reason}): try again when it is less busy") from None
        with _until_shutdown():
            yield


@contextlib.contextmanager
def _sigterm_answered_as_before() -> Iterator[None]:
    """Inside, Ray installs no handler of SIGTERM where this process has one.

    Ray's own are there from the first seconds of ``ray.init`` on, and end the process without a word.
    """
    utils = importlib.import_module("ray._private.utils")
    install = getattr(utils, "set_sigterm_handler", None)
    if install is None or signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None):
        yield
        return
    utils.set_sigterm_handler = lambda _: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.set_sigterm_handler = install  # type: ignore[attr-defined]


@contextlib.contextmanager
def _until_shutdown() -> Iterator[None]:
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError where nothing answers at HOST:PORT. Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=10):
            pass


def node_is_drained() -> bool:
    """Whether this worker's node is about to be taken away: Ray was told so, or its processes there got SIGTERM."""
    if not ray.is_initialized():
        # Ray would start a cluster to answer: in the thread that asks, whose end kills it, and a minute later Ray ends
        # this process.
        return False
    # No public function tells, but of Ray Train, and there only where all workers ask together.
    state: Any = importlib.import_module("ray._private.state").state
    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(
    work: Work, config: Any, directory: Path, workers: Workers, *, on_progress: OnProgress = lambda _: None
) -> Any:
    """Run ``work(config, gpu)`` in every worker under Ray Train; the main process's return value. Needs a cluster.

    Ray Train replaces workers and nodes that are lost and starts all workers again, up to ``workers.restarts`` times.
    With ``workers.minimum`` it starts them with as many as there is room for, and again when there is room for more.
    directory: of this machine, for what Ray Train writes. on_progress: called with what the main process passes to
    :func:`report`. SIGTERM asks it to stop (:func:`asked_to_stop`). Raises RuntimeError, in one line, when the workers
    failed too often. An InputError that ``work`` returns in any of the workers ends them all, and is returned. A
    StorageError is a failure that they are started again for; the one after which they no longer are is returned.
    """
    # Not at the top: importing it takes seconds.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from lgd.distributed.input_errors import EndOnInputError, input_error
    from lgd.distributed.worker_callbacks import ListenForSigterm, UseInterfaceOfNode

    directory.mkdir(parents=True, exist_ok=True)
    messages = Messages()
    end = LauncherEnd(messages, on_progress)
    count = workers.count if workers.minimum is None else (workers.minimum, workers.count)
    trainer = TorchTrainer(
        _run_under_train,
        train_loop_config={"work": work, "config": config, "gpu": workers.gpus > 0, "messages": messages},
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        # Ray's types are those of the class of before.
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=count,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
            placement_strategy="STRICT_SPREAD" if workers.spread else "PACK",
        ),
        run_config=RunConfig(
            # With a name that was used before Ray Train would resume from its own files; ours are the checkpoints.
            name=f"{time.time_ns():x}",
            storage_path=str(directory / "ray"),
            failure_config=FailureConfig(max_failures=workers.restarts),
            callbacks=[UseInterfaceOfNode(), ListenForSigterm(), EndOnInputError()],  # type: ignore[list-item]
        ),
    )
    # After Ray has started: it installs its own handler of SIGTERM. Ray Train leaves one of SIGINT behind.
    with _polled(end), on_signal(end.stop.set, signal.SIGTERM), keep_handlers(signal.SIGINT):
        try:
            result = trainer.fit().return_value  # type: ignore[attr-defined]  # Ray types the older Result
        except SystemExit:
            # Ray Train's answer to Ctrl-C.
            raise KeyboardInterrupt from None
        except Exception as error:
            result = input_error(error)
            if result is None:
                raise RuntimeError(_reason(error)) from error
    shutil.rmtree(directory / "ray", ignore_errors=True)
    return result


def _run_under_train(loop: dict[str, Any]) -> Any:
    """The train loop of each of Ray Train's workers."""
    gpu = 0
    if loop["gpu"]:
        from ray.train.torch import get_device

        # Ray Train lets its workers see all GPUs of their node.
        gpu = get_device().index or 0
    result = _run(loop["work"], loop["config"], gpu, loop["messages"])
    if isinstance(result, InputError):
        # Where it is of this worker alone, the others wait for it: Ray Train ends them all, and starts them again where
        # a store was away (input_errors.py).
        raise result
    return result


def _run(work: Work, config: Any, gpu: int, messages: Messages) -> Any:
    global _to_launcher
    _to_launcher = WorkerEnd(messages)
    os.environ[ranks.NODE_VARIABLE] = ray.get_runtime_context().get_node_id()
    try:
        with notice.watching(node_is_drained):
            result = work(config, gpu)
    except notice.Leaving:
        notice.end_process()
    # The others' results are the same: only one travels. An error may be of one worker alone, such as an image that its
    # loader cannot read.
    return result if ranks.is_main_process() or isinstance(result, Exception) else None


LOST_WORKER = (
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.LocalRayletDiedError,
)
"""What Ray raises, beside RayActorError, where a worker's process was ended: by its memory monitor, with its node."""


def launch_in_placement_group(
    work: Work, config: Any, workers: Workers, *, on_progress: OnProgress = lambda _: None
) -> Any:
    """Run ``work(config, gpu)`` as :func:`launch`, in the placement group that this Tune trial holds, bundle by bundle.

    Not with Ray Train: a TorchTrainer inside a trial reserves a placement group of its own, and without Ray's dashboard
    nobody frees that when the scheduler ends the trial early, so the sweep hangs (Ray 2.60). Here all workers live in
    the trial's group, which Tune frees whatever ends the trial.

    Restarts are Tune's as well (``FailureConfig``): a worker that dies raises ray.exceptions.RayActorError, upon which
    Tune starts the trial again. An error that ``work`` raises comes as RuntimeError, in one line. One that it returns
    in any of the workers is returned, also where the others lost the connection upon it.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group: Any = ray.util.get_current_placement_group()
    members = [
        _TrainWorker.options(  # type: ignore[attr-defined]
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
        ).remote()
        for i in range(workers.count)
    ]
    backend = "nccl" if workers.gpus else "gloo"
    messages = Messages()
    end = LauncherEnd(messages, on_progress)
    results: list[Any] = []
    try:
        address = ray.get(members[0].address.remote())
        results = [
            x.run.remote(work, config, messages, backend, rank, workers.count, address)
            for rank, x in enumerate(members)
        ]
        pending = list(results)
        while pending:
            done, pending = ray.wait(pending, timeout=POLL_INTERVAL_S)
            for result in done:
                # Raises at the first failure: the other workers would wait for that one.
                value = ray.get(result)
                if isinstance(value, InputError):
                    # The others may be in a step, waiting for what it will never send: NCCL would wait for minutes.
                    return value
                if isinstance(value, Exception):
                    ray.kill(members[results.index(result)])
            end.poll()
        return ray.get(results[0])
    except LOST_WORKER as error:
        raise _died(error) from error
    except ray.exceptions.RayTaskError as error:
        returned = _returned_error(results)
        if returned is None:
            raise RuntimeError(_reason(error)) from error
        return returned
    finally:
        for member in members:
            ray.kill(member)
        messages.remove()


def _returned_error(results: list[Any]) -> Exception | None:
    """The error that a worker returned, if one did; RayActorError is raised where one died.

    The error that another one raised is then only that it lost the connection.
    """
    done, _ = ray.wait(results, num_returns=len(results), timeout=PEER_EXIT_TIMEOUT_S)
    found: list[Exception] = []
    for result in done:
        with contextlib.suppress(ray.exceptions.RayTaskError):
            try:
                value = ray.get(result)
            except LOST_WORKER as error:
                raise _died(error) from error
            if isinstance(value, Exception):
                found.append(value)
    return found[0] if found else None


def _died(error: Exception) -> ray.exceptions.RayActorError:
    """For Ray no death of an actor, but one for what starts the trial again: the worker is no more."""
    return ray.exceptions.RayActorError(error_msg=_reason(error))


@ray.remote(max_restarts=0)
class _TrainWorker:
    """A worker in a placement group that a Tune trial holds."""

    def address(self) -> str:
        """HOST:PORT at which the main process will accept the others."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def run(
        self, work: Work, config: Any, messages: Messages, backend: str, rank: int, world_size: int, address: str
    ) -> Any:
        with notice.listening():
            use_interface_of_node()
            dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=world_size)
            # This process sees its own GPU only.
            result = _run(work, config, 0, messages)
        # Not after an error: it may wait for workers that wait for this one.
        dist.destroy_process_group()
        return result


def report(progress: dict[str, Any]) -> None:
    """Called by the main process of the work: pass ``progress`` to the launcher's ``on_progress``."""
    if _to_launcher is not None:
        _to_launcher.report(progress)


def asked_to_stop() -> bool:
    """Whether the launcher asks the work to stop. The main process has to ask now and then."""
    return _to_launcher is not None and _to_launcher.asked_to_stop()


@contextlib.contextmanager
def _polled(end: LauncherEnd) -> Iterator[None]:
    """Inside, a thread polls the launcher's end."""

    def poll() -> None:
        # Where progress is printed to a pipe that was closed (``| head``), the workers are asked to stop still.
        with contextlib.suppress(OSError, ValueError):
            end.poll()

    try:
        with called_every(POLL_INTERVAL_S, poll):
            yield
    finally:
        end.messages.remove()


def _reason(error: Exception) -> str:
    """One line for why the workers failed, from Ray's error."""
    failures = getattr(error, "worker_failures", None) or {}
    texts = [str(x) for x in failures.values()] or [str(error)]
    # The last line of a traceback is the exception.
    lines = [line.strip() for line in texts[0].splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
