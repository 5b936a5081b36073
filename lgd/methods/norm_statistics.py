"""Batch norms that see the features of a teacher too: whose running statistics they update.

A detector's head reads a teacher's features in LGD, and a peer's regions in deep mutual learning. Their statistics are
none of the student's, which is evaluated and exported with its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NAMES = ("running_mean", "running_var", "num_batches_tracked")


def tracking_norms(detector: nn.Module, without: nn.Module | None = None) -> list[_BatchNorm]:
    """The batch norms of a detector that keep running statistics. without: leave out those of this part of it."""
    left_out = set() if without is None else set(without.modules())
    return [
        x
        for x in detector.modules()
        if isinstance(x, _BatchNorm) and x.track_running_stats and x.running_mean is not None and x not in left_out
    ]


@contextmanager
def statistics_kept(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Inside, ``norms`` normalise as they do, and keep their running statistics as they are."""
    before = [(norm, norm.track_running_stats, norm.momentum) for norm in norms]
    for norm, _, _ in before:
        # detectron2's own synchronised norm reads the momentum alone.
        norm.track_running_stats, norm.momentum = False, 0.0
    try:
        yield
    finally:
        for norm, tracks, momentum in before:
            norm.track_running_stats, norm.momentum = tracks, momentum


class SecondStatistics(nn.Module):
    """Running statistics of their own for ``norms`` where they see a teacher's features: :meth:`used`.

    They begin as the norms' own and belong to the training, not to the student.
    """

    def __init__(self, norms: Iterable[_BatchNorm]) -> None:
        super().__init__()
        # In a tuple: the norms are the detector's, not modules of this one.
        self._norms = tuple(norms)
        for i, norm in enumerate(self._norms):
            for name in NAMES:
                value = getattr(norm, name)
                self.register_buffer(f"{name}_{i}", None if value is None else value.detach().clone())

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the norms read and update these statistics."""
        own = [{name: norm._buffers[name] for name in NAMES} for norm in self._norms]
        for i, norm in enumerate(self._norms):
            norm._buffers.update({name: self._buffers[f"{name}_{i}"] for name in NAMES})
        try:
            yield
        finally:
            for norm, buffers in zip(self._norms, own, strict=True):
                norm._buffers.update(buffers)
