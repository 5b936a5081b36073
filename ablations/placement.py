"""Resources of each trial, from the command's options and the machines."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ablations.limits import Placement
from lgd.config.grids import Trial
from lgd.distributed import ray_train
from lgd.distributed.ray_train import Node, Workers
from lgd.distributed.resources import Resources
from lgd.errors import InputError


def this_machine() -> Node:
    """Resources of a Ray cluster of this machine alone."""
    return Node(ray_train.cores(), torch.cuda.device_count())


def resources_for(trials: Sequence[Trial], nodes: Sequence[Node], placement: Placement) -> Resources:
    """One core a worker on the CPU: small networks gain more from running side by side than from more threads.

    With GPUs, one each, and the cores shared out. Raises InputError for what these nodes can never give.
    """
    cpus, gpus = placement.cpus, placement.gpus
    devices = sum(int(node.gpus) for node in nodes)
    on_gpu = devices > 0 and any(t.experiment.device != "cpu" for t in trials)
    share = gpus if gpus is not None else float(on_gpu)
    if cpus is not None and cpus < 1:
        raise InputError(f"--cpus {cpus}: a trial needs at least one")
    if not 0 <= share <= 1:
        raise InputError(f"--gpus {share:g}: a worker trains on one GPU or a part of one; --workers takes several")
    if cpus is None:
        cpus = 1
        if share and devices:
            cpus = max(1, int(min(n.cpus / n.gpus for n in nodes if n.gpus) * share))
    workers = Workers(placement.workers, share, cpus, placement.spread)
    for trial in trials:
        workers.check(trial.experiment)
    max_concurrent = max(1, min(workers.max_concurrent(nodes), len(trials) or 1))
    return Resources(cpus, share, max_concurrent, placement.workers, placement.spread)
