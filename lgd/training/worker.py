"""A training as the work of Ray's worker processes (see lgd/distributed/ray_train.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lgd.config.experiment import Experiment
from lgd.data.loaders import processes_for
from lgd.distributed import ranks, ray_train, shares
from lgd.distributed.shared_disk import check_shared
from lgd.distributed.workers import Node, Workers
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.storage import outputs
from lgd.training import node_disks
from lgd.training.progress import Progress, Stopped
from lgd.training.resume import existing_record, remove_resume_files
from lgd.training.teacher import train_with_teacher


@dataclass(frozen=True)
class Job:
    """A training, as it is sent to its workers."""

    experiment: Experiment
    directory: str
    """Path, or URL where the workers' nodes may share no disk; so are ``teachers`` and ``stop``."""
    teachers: str
    """Directory of the frozen teachers."""
    workers: Workers
    names: dict[str, Any] = field(default_factory=dict)
    """grid, preset, arm and overrides, for the record."""
    stop: str = ""
    """The training stops when this file appears, or when the launcher asks for it."""
    lease: int = 0
    """Number of the lease on what ``stop`` lies in; the training stops when another process has taken that over."""


def train_on_workers(
    experiment: Experiment,
    directory: Path,
    workers: Workers | Callable[[Sequence[Node]], Workers],
    *,
    address: str | None = None,
    teachers: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **names: Any,
) -> Record:
    """:func:`train_with_teacher` over ``workers``, in the Ray cluster at ``address`` (see ray_train.cluster).

    workers: or a function that chooses them, given the cluster's nodes. SIGTERM writes a checkpoint and raises Stopped.
    Raises InputError before anything starts for what cannot run. When the workers failed more often than
    ``workers.restarts``, raises StorageError where a store was away, else RuntimeError, in one line.
    """
    if isinstance(workers, Workers):
        workers.check(experiment)
    directory, teachers = directory.resolve(), (teachers or directory.parent / "teachers").resolve()
    with ray_train.cluster(address):
        if not isinstance(workers, Workers):
            workers = workers(ray_train.nodes())
            workers.check(experiment)
        # What does not fit even into an idle cluster would wait for ever.
        workers.max_concurrent(ray_train.nodes())
        check_shared(directory, workers.cpus, workers.gpus)
        place, lease = outputs.shown(directory), outputs.lease_number(directory)
        # The workers ask for the lease themselves: this process may be cut off from them when it loses it.
        stop = f"{place}/{outputs.STOP_FILE}" if lease else ""
        job = Job(experiment, place, outputs.shown(teachers), workers, names, stop, lease)
        result = ray_train.launch(train_as_worker, job, directory, workers, on_progress=on_progress)
    return _record(result)


def train_in_trial(job: Job, on_progress: Callable[[Progress], None]) -> Record:
    """:func:`train_with_teacher` over the job's workers, in the placement group of the Tune trial that calls this.

    Raises ray.exceptions.RayActorError when a worker died, for Tune to start the trial again.
    """
    job = replace(job, experiment=loading_within(job.experiment, job.workers.cpus, job.workers.gpus))
    return _record(ray_train.launch_in_placement_group(train_as_worker, job, job.workers, on_progress=on_progress))


def train_as_worker(job: Job, gpu: int) -> Record | InputError | Stopped:
    """The work of each worker. Returns what Ray must not take for a worker's failure, after which it starts all again:
    ray_train.launch tells which of the errors is one all the same."""
    with shares.split_into(None if job.workers.minimum is None else job.workers.count):
        return _train_as_worker(job, gpu)


def _train_as_worker(job: Job, gpu: int) -> Record | InputError | Stopped:
    experiment = experiment_for_worker(job.experiment, job.workers.cpus, job.workers.gpus, gpu)
    directory, stop = outputs.output_path(job.directory), outputs.Signal(job.stop, job.lease)
    try:
        with node_disks.working_in(directory, every=stop.refresh):
            # A worker may have died when the training was finished and its record saved.
            saved = ranks.run_on_all_ranks(lambda: _finished(directory, experiment), first_only=True)
            return saved or train_with_teacher(
                experiment,
                directory,
                teachers=outputs.output_path(job.teachers),
                on_progress=ray_train.report,
                should_stop=lambda: ray_train.asked_to_stop() or stop.is_there(),
                share=job.workers.gpus or 1.0,
                **job.names,
            )
    except (InputError, Stopped) as outcome:
        # Without its traceback, which would keep the model alive.
        return outcome.with_traceback(None)


def _record(result: Record | InputError | Stopped) -> Record:
    if isinstance(result, Exception):
        raise result
    return result


def _finished(directory: Path, experiment: Experiment) -> Record | None:
    """The record of this training in ``directory``, if it is finished."""
    record = existing_record(directory, experiment)
    if record is None or record.status != "finished":
        return None
    remove_resume_files(directory, record)
    return record


def loading_within(experiment: Experiment, cpus: int, gpus: float) -> Experiment:
    """``experiment`` with ``data.workers`` of auto set to what the cores that a trial holds are enough for.

    Other trials hold the machine's other cores. Without a GPU it stays auto.
    """
    if not gpus or experiment.data.workers != "auto":
        return experiment
    return experiment.override({"data.workers": processes_for(cpus)})


def experiment_for_worker(experiment: Experiment, cpus: int, gpus: float, gpu: int = 0) -> Experiment:
    """``experiment`` as a worker with these resources runs it. Sets this process's GPU, where it holds one.

    gpu: its number.
    """
    if gpus:
        torch.cuda.set_device(gpu)
    elif experiment.device == "auto":
        # A worker without a GPU must not use one that was given to others.
        experiment = experiment.model_copy(update={"device": "cpu"})
    return experiment if experiment.threads else experiment.model_copy(update={"threads": cpus})
