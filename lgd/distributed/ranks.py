"""What a training needs to know of the other workers that share it; with one worker, next to nothing."""

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

from lgd.errors import InputError

T = TypeVar("T")

NODE_VARIABLE = "LGD_NODE"
"""Environment variable with the name of a worker's node, where several may share one host."""


def node_count() -> int:
    """Nodes that the workers are on."""
    return len(set(all_gather(os.environ.get(NODE_VARIABLE) or platform.node())))


def world_size() -> int:
    """Workers of this training."""
    return int(comm.get_world_size())


def rank() -> int:
    """This worker's number, 0 for the one that writes."""
    return int(comm.get_rank())


def is_main_process() -> bool:
    return rank() == 0


def wrap_ddp(model: nn.Module) -> nn.Module:
    """``model`` with its gradients averaged over the workers; itself when there is one.

    Of the parameters as they are frozen now: wrap again when that changes, and nothing has to look for unused ones.
    """
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def sync_loss_normalizer(detector: Any) -> None:
    """Let a dense detector's running loss normaliser count the positives of all workers.

    detectron2 averages each worker's own count, so a loss changes with the number of workers that share a batch. With
    the mean over the workers it does not: the mean of the workers' losses is the loss of the whole batch on one.
    """
    own = getattr(detector, "_ema_update", None)
    if world_size() == 1 or own is None:
        return

    def update(name: str, value: float | Tensor, initial_value: float, momentum: float = 0.9) -> Any:
        device = next(detector.parameters()).device
        total = torch.as_tensor(value, device=device, dtype=torch.float64).clone()
        dist.all_reduce(total)
        mean = total / world_size()
        # As it came: whoever gave a tensor does not want to wait for its value.
        return own(name, mean if isinstance(value, Tensor) else mean.item(), initial_value / world_size(), momentum)

    detector._ema_update = update


def broadcast_buffers(model: nn.Module) -> None:
    """Give every worker the first one's buffers (batch norm's running statistics): one model is scored and saved."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def run_on_all_ranks(act: Callable[[], T], *, first_only: bool = False) -> T:
    """What ``act`` returns, on every worker; what it raises on one as InputError is raised on all.

    first_only: the first worker acts, and all get what it got.
    """
    outcome, complaint = None, ""
    if is_main_process() or not first_only:
        try:
            outcome = act()
        except InputError as error:
            complaint = str(error)
    complaints = [x for x in all_gather(complaint) if x]
    if complaints:
        raise InputError(complaints[0])
    return cast(T, broadcast(outcome) if first_only else outcome)


def broadcast(value: Any) -> Any:
    """The first worker's ``value``, on every worker."""
    if world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def all_gather(value: Any) -> list[Any]:
    """Every worker's ``value`` by rank, on every worker."""
    return list(comm.all_gather(value)) if world_size() > 1 else [value]


def mean_over_workers(total: Tensor) -> Tensor:
    """A normaliser: the mean over all workers of a scalar that each has summed up, and at least 1."""
    workers = world_size()
    if workers > 1:
        total = total.detach().clone()
        dist.all_reduce(total)
        total = total / workers
    return total.clamp(min=1)
