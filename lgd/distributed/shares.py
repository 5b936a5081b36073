"""The shares of a step's batch, and which process computes which.

A training over N workers cuts every batch into N shares, one a worker, and averages the losses and gradients of the
shares. With ``--elastic MIN:MAX`` the number of shares is MAX whatever the number of processes: each of k processes
computes the shares k apart from its rank on, one after the other. Samples, batches, random numbers, batch statistics
and gradients are then those of MAX workers, and a process needs the memory of one share.

What a loss divides by may be a mean over all shares (:func:`mean_over_shares`). With one share a process that is one
all-reduce in the forward pass. Where some process has several, the mean is needed before all shares were seen: each
process computes the losses of its shares without gradients first, counting (:func:`counting`), and then again
(:func:`computing_share`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

__all__ = [
    "Counted",
    "NotCountedError",
    "count",
    "counting",
    "elastic",
    "is_counting",
    "mean_over_shares",
    "once_a_step",
    "one_share_per_process",
    "own",
    "split_into",
    "computing_share",
]

T = TypeVar("T")


class NotCountedError(Exception):
    """A loss asks for a mean over shares that have not been counted: :func:`counting` has to come first."""


@dataclass
class Counted:
    """The values that a forward pass hands to :func:`mean_over_shares`, in order."""

    totals: list[Tensor] = field(default_factory=list)
    """float64; sums over this process's shares, and after :meth:`means` over all shares their means."""
    results: list[Any] = field(default_factory=list)
    """Of :func:`once_a_step`, in order."""
    position: int = 0
    result_position: int = 0
    first: bool = True

    def means(self) -> Counted:
        """The same as means over the shares of all processes. All must call it."""
        if self.totals:
            summed = torch.stack(self.totals)
            if comm.get_world_size() > 1:
                dist.all_reduce(summed)
            self.totals = list((summed / count()).unbind())
        return self


@dataclass
class _Current:
    count: int | None = None
    counts: Counted | None = None
    mode: str = "direct"


_current = _Current()


@contextmanager
def split_into(number: int | None) -> Iterator[None]:
    """Inside, every batch has ``number`` shares, however many processes there are; None: one a process.

    Raises ValueError for fewer shares than processes.
    """
    if number is not None and number < comm.get_world_size():
        raise ValueError(f"{number} shares for {comm.get_world_size()} processes")
    before, _current.count = _current.count, number
    try:
        yield
    finally:
        _current.count = before


def elastic() -> bool:
    """Whether the number of shares is fixed, and the number of processes may change from one start to the next."""
    return _current.count is not None


def count() -> int:
    """Number of shares of a batch."""
    return _current.count or int(comm.get_world_size())


def own() -> range:
    """Numbers of the shares that this process computes."""
    return range(int(comm.get_rank()), count(), int(comm.get_world_size()))


def one_share_per_process() -> bool:
    """Whether every process has one share."""
    return count() == comm.get_world_size()


def is_counting() -> bool:
    """Whether this forward pass is for counting only: what it computes must not be added up anywhere."""
    return _current.mode == "counting"


@contextmanager
def counting() -> Iterator[Counted]:
    """Inside, forward passes of a process's shares count; each begins with ``position`` 0."""
    counts = Counted()
    before = _current.mode, _current.counts
    _current.mode, _current.counts = "counting", counts
    try:
        yield counts
    finally:
        _current.mode, _current.counts = before


@contextmanager
def computing_share(counts: Counted | None, *, first: bool) -> Iterator[None]:
    """Inside is the forward pass of one share, where some process has several.

    counts: the means, None where none are known.
    first: whether it is the process's first share of this part of the step.
    """
    before = _current.mode, _current.counts
    _current.mode, _current.counts = "computing", counts
    if counts is not None:
        counts.position = counts.result_position = 0
        counts.first = first
    try:
        yield
    finally:
        _current.mode, _current.counts = before


def mean_over_shares(value: Tensor) -> Tensor:
    """The mean over all shares of a scalar. In the forward pass, as often and in the same order on every share."""
    counts = _current.counts
    if _current.mode == "counting" and counts is not None:
        total = value.detach().double()
        if counts.position == len(counts.totals):
            counts.totals.append(total)
        else:
            counts.totals[counts.position] = counts.totals[counts.position] + total
        counts.position += 1
        return value.detach()
    if _current.mode == "computing":
        if counts is None or counts.position == len(counts.totals):
            raise NotCountedError
        counts.position += 1
        return counts.totals[counts.position - 1].to(value.dtype)
    if count() == 1:
        return value.detach()
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return mean / count()


def once_a_step(update: Callable[[], T], meanwhile: T) -> T:
    """Call ``update`` on the first of a process's shares; the others get its result. While counting: ``meanwhile``.

    For what changes with a mean over the shares, such as a running mean of it.
    """
    counts = _current.counts
    if _current.mode == "counting":
        return meanwhile
    if _current.mode != "computing" or counts is None:
        return update()
    if counts.first:
        counts.results.append(update())
    counts.result_position += 1
    found: T = counts.results[counts.result_position - 1]
    return found
