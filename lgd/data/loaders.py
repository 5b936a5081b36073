"""Loaders whose batches depend on the seed and on the position in the stream, and on nothing else.

detectron2's own loaders draw augmentations from numpy's global state, so that the same seed gives other images
when the number of workers changes, when other code draws numbers, or after a resume. Here each sample is made
under random states of its own, derived from (seed, position). benchmarks/loader.py compares the time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Literal, cast

import torch
from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from lgd.data.catalog import register
from lgd.data.dataset import DataSet, check_objects
from lgd.data.mapper import CACHE_BYTES, FastDatasetMapper, ImageCache, Sample
from lgd.data.sampling import BatchSampler, EqualSizes, SampleStream
from lgd.data.split import part_of
from lgd.distributed import shares
from lgd.errors import InputError

__all__ = ["Workers", "processes_for", "train_loader", "val_loader", "worker_processes"]

Workers = int | Literal["auto"]
_MOST_WORKERS = 16
_PARENT_CHECK_SECONDS = 1.0

# Shared by the loaders of a process: each evaluation builds a new one.
_shared_cache = ImageCache()


def train_loader(
    dataset: DataSet,
    *,
    batch_size: int,
    min_sizes: tuple[int, ...],
    max_size: int,
    flip: bool,
    masks: bool,
    seed: int,
    workers: Workers,
    cuda: bool = False,
    start: int = 0,
    keep_empty: bool = False,
    group_aspect: bool = True,
    fraction: float = 1.0,
    cache_bytes: int | None = None,
) -> Iterable[list[Sample]]:
    """Endless training batches in detectron2's format, a pure function of (seed, position, these sizes).

    batch_size: images a step, all processes together; each process gets a batch for each of its shares of them
    (lgd/distributed/shares.py). min_sizes: shorter sides (pixels) to choose from; max_size: longest longer side.
    masks: with ``gt_masks``. workers: see :func:`worker_processes`; they change nothing about the batches. cuda:
    batches go to a GPU, so they come in pinned memory. start: samples that all processes together have consumed; a
    multiple of batch_size, and batches go on as if there had been no break. keep_empty: train also on images without
    objects. group_aspect: put wide and high images into separate batches, as detectron2 does. fraction: the part of
    the images to train on (lgd/data/split.py). cache_bytes: budget for decoded images, divided between the workers;
    None for this process's shared gibibyte.

    Iterating again begins at ``start`` again. Raises InputError for sizes that do not fit and, with masks, for
    annotations without a segmentation.
    """
    parts = shares.count()
    _check_sizes(batch_size, parts, start, min_sizes)
    if not keep_empty:
        check_objects(dataset)
    register(dataset)
    records = part_of(_records(dataset.train, filter_empty=not keep_empty), fraction, lambda x: x["image_id"])
    processes = worker_processes(workers, cuda=cuda)
    mapper = FastDatasetMapper(
        min_sizes=min_sizes,
        max_size=max_size,
        flip=flip,
        labels=True,
        masks=masks,
        mask_format=_mask_format(dataset, records) if masks else "polygon",
        cache=_cache(cache_bytes, processes),
        paint=dataset.is_people,
    )
    wide = [record["width"] > record["height"] for record in records] if group_aspect else None
    return DataLoader(
        SampleStream(records, mapper, seed),
        batch_sampler=BatchSampler(len(records), seed, batch_size // parts, wide, start // batch_size),
        num_workers=processes,
        collate_fn=trivial_batch_collator,
        # Otherwise each iterator draws from torch's global state.
        generator=_own_generator(),
        persistent_workers=processes > 0,
        pin_memory=cuda,
        worker_init_fn=_exit_with_parent,
    )


def _check_sizes(batch_size: int, parts: int, start: int, min_sizes: tuple[int, ...]) -> None:
    if batch_size < 1 or batch_size % parts:
        raise InputError(f"batch size {batch_size} cannot be divided between {parts} processes")
    if start < 0 or start % batch_size:
        raise InputError(f"start {start} is not a multiple of the batch size {batch_size}")
    if not min_sizes:
        raise InputError("min_sizes is empty")


def val_loader(
    dataset: DataSet,
    *,
    min_size: int,
    max_size: int,
    workers: Workers,
    with_labels: bool,
    cuda: bool = False,
    batch_size: int = 1,
    cache_bytes: int | None = None,
) -> DataLoader[list[Sample]]:
    """All validation images in order, those without objects too, shared out between processes.

    min_size, max_size: shorter and longest longer side in pixels. with_labels: keep ``instances`` (in the resized
    image's pixels, without crowds), so that a teacher which reads labels can be evaluated. workers, cuda: as for
    :func:`train_loader`. batch_size: images of a batch, at most: only images of one size share a batch, so that none
    is padded and its detections depend on no other image.
    """
    register(dataset)
    processes = worker_processes(workers, cuda=cuda)
    mapper = FastDatasetMapper(
        min_sizes=(min_size,),
        max_size=max_size,
        flip=False,
        labels=with_labels,
        masks=False,
        mask_format="polygon",
        cache=_cache(cache_bytes, processes),
    )
    records = _records(dataset.val, filter_empty=False)
    return DataLoader(
        MapDataset(DatasetFromList(records, copy=False), mapper),
        batch_sampler=EqualSizes([(x["height"], x["width"]) for x in records], batch_size),
        num_workers=processes,
        collate_fn=trivial_batch_collator,
        # An evaluation must not move torch's global state.
        generator=_own_generator(),
        pin_memory=cuda,
        worker_init_fn=_exit_with_parent,
    )


def worker_processes(workers: Workers, *, cuda: bool) -> int:
    """Processes beside this one that load data.

    auto: none where the model itself needs the cores, which is on the CPU; with a GPU those that this machine's
    processes of the training leave each other, one for this process kept, at most 16.
    """
    if workers != "auto":
        return workers
    if not cuda:
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", comm.get_world_size()))
    return processes_for(len(os.sched_getaffinity(0)) // here)


def processes_for(cores: int) -> int:
    """Processes that load data for a process with a GPU that has so many cores: one is kept for itself; at most 16."""
    return max(1, min(_MOST_WORKERS, cores - 1))


def _exit_with_parent(_: int) -> None:
    """Let this worker process end within about a second of the process that started it, however that one ended.

    torch's own workers look only while they wait for work: one that has a batch to hand over waits for ever.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="exit with parent", daemon=True).start()


def _own_generator() -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(0)
    return generator


def _cache(budget: int | None, workers: int) -> ImageCache:
    if budget is None and workers == 0:
        return _shared_cache
    # Each worker process fills a copy of its own.
    return ImageCache((CACHE_BYTES if budget is None else budget) // max(workers, 1))


def _records(name: str, filter_empty: bool) -> list[Sample]:
    return cast("list[Sample]", get_detection_dataset_dicts([name], filter_empty=filter_empty))


def _mask_format(dataset: DataSet, records: list[Sample]) -> str:
    """Polygons where every object has them, else bitmaps: a PolygonMasks cannot hold run lengths."""
    form = "polygon"
    for record in records:
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            if "segmentation" not in annotation:
                raise InputError(f"{dataset.layout.train_json}: an object of {record['file_name']} has no segmentation")
            if isinstance(annotation["segmentation"], dict):
                form = "bitmask"
    return form
