"""Samples and batches that depend on the seed and on the position in the stream, and on nothing else."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import Dataset, Sampler

from lgd.data.mapper import FastDatasetMapper, Sample
from lgd.distributed import shares

__all__ = ["BatchSampler", "EqualSizes", "SampleStream"]


@contextlib.contextmanager
def _random_states(seed: int, position: int) -> Iterator[None]:
    """Inside, python's, numpy's and torch's CPU states follow from (seed, position); outside nothing changes."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    words = np.random.SeedSequence([seed, position]).generate_state(4)
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1:3])  # noqa: NPY002 - detectron2's augmentations draw from it
        # Not torch.manual_seed: that would also reset the GPUs' states, in the middle of training.
        torch.default_generator.manual_seed(int(words[3]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


class SampleStream(Dataset[Sample]):
    """Samples by (position in the stream, index in the data set)."""

    def __init__(self, records: list[Sample], mapper: FastDatasetMapper, seed: int) -> None:
        self._records = DatasetFromList(records, copy=False)
        self._mapper = mapper
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, index = key
        with _random_states(self._seed, position):
            return self._mapper(self._records[index])


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """This process's endless batches of (position, index), from step ``start`` on: one a step for each of its shares.

    wide: for each image whether it is wider than high, to put alike images into a batch as detectron2's
    AspectRatioGroupedDataset does; None for no grouping. That class groups samples after they were loaded: its
    half-filled buckets are lost in a resume and its order changes with the number of workers. Grouping the indices
    gives the same batches and keeps them a function of the seed and of the number of shares
    (lgd/distributed/shares.py) alone; a resume replays the integers.
    """

    def __init__(self, size: int, seed: int, batch: int, wide: list[bool] | None, start: int) -> None:
        self._size, self._seed = size, seed
        self._batch = batch
        self._wide = wide
        self._start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        streams = [itertools.islice(self._of_share(x), self._start, None) for x in shares.own()]
        while True:
            for stream in streams:
                yield next(stream)

    def _of_share(self, share: int) -> Iterator[list[tuple[int, int]]]:
        buckets: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        for position, index in itertools.islice(enumerate(self._indices()), share, None, shares.count()):
            bucket = buckets[self._wide[index] if self._wide else 0]
            bucket.append((position, index))
            if len(bucket) == self._batch:
                yield bucket[:]
                bucket.clear()

    def _indices(self) -> Iterator[int]:
        """The stream of all shares together: that of detectron2's TrainingSampler, which knows one share a process."""
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            yield from torch.randperm(self._size, generator=generator).tolist()


class EqualSizes(Sampler[list[int]]):
    """This rank's part of a data set, in order, in batches of neighbours of one size.

    sizes: (height, width) of every image. batch: images of a batch, at most.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch: int) -> None:
        # Not with a size of 0, which it refuses; an empty split has no batch.
        mine = list(InferenceSampler(len(sizes))) if sizes else []
        runs = [list(run) for _, run in itertools.groupby(mine, key=lambda index: sizes[index])]
        self._batches = [run[i : i + batch] for run in runs for i in range(0, len(run), batch)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
