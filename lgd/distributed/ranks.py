"""Collectives over the workers of one training. With one worker they return at once."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lgd.distributed import shares
from lgd.errors import InputError
from lgd.storage.store import StorageError

T = TypeVar("T")

NODE_VARIABLE = "LGD_NODE"
"""Environment variable with the id of a worker's Ray node: several nodes may run on one host."""


def node_count() -> int:
    """Number of nodes that the workers run on."""
    return len(set(all_gather(os.environ.get(NODE_VARIABLE) or platform.node())))


def world_size() -> int:
    """Number of workers of this training."""
    return int(comm.get_world_size())


def rank() -> int:
    """This worker's rank; the main process, which writes the files, has 0."""
    return int(comm.get_rank())


def is_main_process() -> bool:
    return rank() == 0


def wrap_ddp(model: nn.Module) -> nn.Module:
    """``model`` in DistributedDataParallel; itself when there is one worker.

    Wrap it again whenever other parameters are frozen: it is made without ``find_unused_parameters``.
    """
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


LOSS_NORMALIZER = "loss_normalizer"
"""Where detectron2's dense detectors keep the running mean of their numbers of positives."""


def sync_loss_normalizer(detector: Any) -> None:
    """Make a dense detector's running loss normaliser a mean over all shares' numbers of positives.

    In detectron2 each worker normalises by its own number, so the loss depends on how many workers share a batch. With
    the mean over the shares, the mean of their losses is the loss of the whole batch on one worker.
    """
    own = getattr(detector, "_ema_update", None)
    if shares.count() == 1 or own is None:
        return

    def update(name: str, value: float | Tensor, initial_value: float, momentum: float = 0.9) -> Any:
        device = next(detector.parameters()).device
        mean = shares.mean_over_shares(torch.as_tensor(value, device=device, dtype=torch.float64))

        def running_mean() -> Any:
            # A tensor stays a tensor: reading its value would wait for the GPU.
            new = mean if isinstance(value, Tensor) else mean.item()
            return own(name, new, initial_value / shares.count(), momentum)

        return shares.once_a_step(running_mean, meanwhile=value)

    detector._ema_update = update


def broadcast_buffers(model: nn.Module) -> None:
    """Give all workers the main process's buffers (batch norm's running statistics), to evaluate and save one model."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def run_on_all_ranks(act: Callable[[], T], *, first_only: bool = False) -> T:
    """Call ``act`` on every worker and return its result. An InputError of one worker is raised on all.

    A StorageError as a StorageError: the training has not failed, and goes on once the store answers.

    first_only: only the main process calls it, and its result is returned on all.
    """
    outcome: T | None = None
    complaint: tuple[bool, str] | None = None
    if is_main_process() or not first_only:
        try:
            outcome = act()
        except InputError as error:
            complaint = isinstance(error, StorageError), str(error)
    complaints = [x for x in all_gather(complaint) if x is not None]
    if complaints:
        of_store, text = complaints[0]
        raise StorageError(text) if of_store else InputError(text)
    return cast(T, broadcast(outcome) if first_only else outcome)


def broadcast(value: Any) -> Any:
    """The main process's ``value``, on every worker."""
    if world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def all_gather(value: Any) -> list[Any]:
    """The values of all workers, by rank, on every worker."""
    return list(comm.all_gather(value)) if world_size() > 1 else [value]


def mean_over_workers(total: Tensor) -> Tensor:
    """The mean over the workers, or the shares that stand for them, of a scalar ``total``, at least 1: a normaliser."""
    return shares.mean_over_shares(total).clamp(min=1)
