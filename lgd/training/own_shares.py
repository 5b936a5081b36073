"""A process's shares of every batch (lgd/distributed/shares.py), computed one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from lgd.distributed import shares
from lgd.distributed.shares import Counted
from lgd.errors import InputError
from lgd.methods.feature_capture import running_state, set_running_state
from lgd.training import checkpoint
from lgd.training.device import seed_everything


class OwnShares:
    """Gives each of this process's shares random numbers of its own, and the means that its losses divide by.

    With one share a process nothing is done: the process's own random state is the share's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._random: list[Any] = []
        self._needs_counting = True
        self._counted: Counted | None = None

    @property
    def several(self) -> bool:
        """Whether some process has more than one share: then all of them count."""
        return not shares.one_share_per_process()

    def seed(self, seed: int, start: int) -> None:
        """Give each share random numbers that follow from ``seed`` and from the step to start from."""
        self._random = []
        for share in shares.own():
            seed_everything(_share_seed(seed, share, start))
            if self.several:
                self._random.append(checkpoint.random_state())

    def restore(self, states: Sequence[Any]) -> None:
        """Go on from the random states of all shares."""
        if self.several:
            self._random = [states[x] for x in shares.own()]
        else:
            checkpoint.set_random_state(states[shares.own()[0]])

    def random_states(self) -> list[Any]:
        """The random state of each of this process's shares."""
        return list(self._random) if self.several else [checkpoint.random_state()]

    def count(self, batches: Sequence[Any], forward: Callable[[Any], Any], *, again: bool = False) -> None:
        """Find the means over all shares that the next losses divide by. All processes must call it.

        It takes a forward pass of each batch without gradients, and is left out where the model asks for no such
        mean. again: the model has asked for one all the same.
        """
        self._counted = None
        if not self.several or not (self._needs_counting or again):
            return
        with shares.counting() as counts, torch.no_grad(), self._without_traces():
            for i, batch in enumerate(batches):
                checkpoint.set_random_state(self._random[i])
                counts.position = 0
                forward(batch)
        self._counted = counts.means()
        self._needs_counting = bool(counts.totals)

    @contextmanager
    def computing_share(self, i: int) -> Iterator[None]:
        """Inside, forward and backward pass of the ``i``-th of this process's shares are computed."""
        if not self.several:
            yield
            return
        checkpoint.set_random_state(self._random[i])
        # Running statistics are those of the first share: the main process's are kept (ranks.broadcast_buffers).
        before = None if i == 0 and self._counted is not None else _running(self._model)
        try:
            with shares.computing_share(self._counted, first=i == 0):
                yield
        except shares.NotCountedError:
            if before is not None:
                _restore(self._model, before)
            raise
        self._random[i] = checkpoint.random_state()
        if i > 0 and before is not None:
            _restore(self._model, before)

    @contextmanager
    def _without_traces(self) -> Iterator[None]:
        """What is logged inside is dropped, and buffers and running numbers are as before afterwards."""
        before = _running(self._model)
        with EventStorage(get_event_storage().iter):
            yield
        _restore(self._model, before)


def _share_seed(seed: int, share: int, start: int) -> int:
    """At most 32 bits, as numpy's generator takes them."""
    if start == 0:
        return (seed + 1_000_003 * share) % 2**32
    return int(np.random.SeedSequence([seed, share, start]).generate_state(1)[0])


def check_norms(model: nn.Module) -> None:
    """Raise InputError where a layer takes its statistics over the processes that there happen to be."""
    if shares.elastic() and any("SyncBatchNorm" in type(x).__name__ for x in model.modules()):
        raise InputError(
            "--elastic: a norm SyncBN takes its statistics over the workers of the moment, so the result would depend"
            " on them; use detector.backbone.norm BN, GN or FrozenBN"
        )


def _running(model: nn.Module) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """What a forward pass may move: buffers, and numbers beside them."""
    return [x.clone() for x in model.buffers()], running_state(model)


def _restore(model: nn.Module, before: tuple[list[torch.Tensor], dict[str, Any]]) -> None:
    buffers, numbers = before
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
    set_running_state(model, numbers)
