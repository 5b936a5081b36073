"""Loaders whose batches depend on the seed and on the position in the stream, and on nothing else.

detectron2's own loaders draw augmentations from numpy's global state, so that the same seed gives other pictures
when the number of workers changes, when other code draws numbers, or after a resume. Here each sample is made
under random states of its own, derived from (seed, position). benchmarks/loader.py compares the time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    build_detection_test_loader,
    detection_utils,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils import comm
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from lgd.data.images import read
from lgd.errors import InputError

if TYPE_CHECKING:
    from lgd.data import DataSet

__all__ = ["ImageCache", "Workers", "train_loader", "val_loader", "worker_processes"]

Sample = dict[str, Any]
Workers = int | Literal["auto"]
_CACHE_BYTES = 2**30
_MOST_WORKERS = 16


# -------------------------------------------------------------------------------------------------- decoding


class ImageCache:
    """Decoded images up to a budget of bytes; what does not fit is decoded each time.

    Nothing is evicted: an epoch reads every image once, and dropping the oldest would then drop each image just
    before it is needed again.
    """

    def __init__(self, budget: int = _CACHE_BYTES) -> None:
        self.budget = budget
        self.used = 0
        self._images: dict[tuple[str, int, int, int], torch.Tensor] = {}

    def read(self, path: str, shrink: int = 1) -> torch.Tensor:
        """(3, H, W) uint8, BGR, a view that nobody may write to; see :func:`lgd.data.images.read`."""
        status = os.stat(path)  # noqa: PTH116 - twice as fast as Path's, once a sample
        key = (path, shrink, status.st_mtime_ns, status.st_size)
        image = self._images.get(key)
        if image is None:
            image = torch.from_numpy(read(path, shrink)).permute(2, 0, 1)
            if self.used + image.nbytes <= self.budget:
                self._images[key] = image
                self.used += image.nbytes
        return image


# Shared by the loaders of a process: each evaluation builds a new one.
_shared_cache = ImageCache()


class _Mapper(DatasetMapper):
    """DatasetMapper in less time, which can also keep the labels without training augmentations.

    The same augmentations draw the same numbers and do the same to the annotations; the image is read through a cache,
    resized by torch (2.5 times as fast as by Pillow, and within one level of 255 of it) and written once. A JPEG that
    will at least be halved whatever is drawn is decoded at a half, a quarter or an eighth of its size.
    paint: hide the regions to ignore in training (see :func:`_painted`).
    """

    def __init__(
        self,
        *,
        min_sizes: tuple[int, ...],
        max_size: int,
        flip: bool,
        labels: bool,
        masks: bool,
        mask_format: str,
        cache: ImageCache,
        paint: bool = False,
    ) -> None:
        self._paint = paint
        self._drawing: list[T.Augmentation] = [T.ResizeShortestEdge(list(min_sizes), max_size, "choice")]
        if flip:
            self._drawing.append(T.RandomFlip())
        self._largest = (max(min_sizes), max_size)
        super().__init__(
            is_train=labels,
            augmentations=self._drawing,
            image_format="BGR",
            use_instance_mask=masks,
            instance_mask_format=mask_format,
        )
        self.cache = cache

    def __call__(self, dataset_dict: Sample) -> Sample:
        """dataset_dict is owned and changed: DatasetFromList unpickles a new one each time."""
        height, width = dataset_dict["height"], dataset_dict["width"]
        shrink = self.shrink(height, width)
        pixels = self.cache.read(dataset_dict["file_name"], shrink)
        if pixels.shape[1:] not in ((height, width), (-(-height // shrink), -(-width // shrink))):
            detection_utils.check_image_size(dataset_dict, pixels.permute(1, 2, 0))
        if self._paint and self.is_train:
            pixels = _painted(pixels, dataset_dict)
        transforms = self.draw(height, width)
        image = _apply(transforms, pixels)
        dataset_dict["image"] = image
        if not self.is_train:
            dataset_dict.pop("annotations", None)
            return dataset_dict
        size = tuple(image.shape[1:])
        self._transform_annotations(dataset_dict, T.TransformList(transforms), size)
        instances = dataset_dict["instances"]
        if self.use_instance_mask and not instances.has("gt_masks"):
            # Without objects detectron2 leaves the field out, and mask heads fail on a batch that mixes both.
            polygons = self.instance_mask_format == "polygon"
            instances.gt_masks = PolygonMasks([]) if polygons else BitMasks(torch.zeros(0, *size))
        return dataset_dict

    def shrink(self, height: int, width: int) -> int:
        """The part of its size that an image may be decoded at: none of the sizes to choose from is above it."""
        times = height / T.ResizeShortestEdge.get_output_shape(height, width, *self._largest)[0]
        return next((x for x in (8, 4, 2) if times >= x), 1)

    def draw(self, height: int, width: int) -> list[T.Transform]:
        """The transforms of one sample. The augmentations look at nothing but an image's shape."""
        transforms = []
        for augmentation in self._drawing:
            transform = augmentation.get_transform(np.broadcast_to(np.uint8(0), (height, width, 3)))
            if isinstance(transform, T.ResizeTransform):
                height, width = transform.new_h, transform.new_w
            transforms.append(transform)
        return transforms


MEAN = (103.53, 116.28, 123.675)
"""BGR of what a detector sees as zero: ImageNet's mean, as in every detectron2 model."""


def _painted(pixels: torch.Tensor, sample: Sample) -> torch.Tensor:
    """The image with its regions to ignore (crowds) in the mean colour, but for what labelled boxes cover.

    Nothing of what may or may not be a person there is taught as background, whatever the detector.
    """
    scale = pixels.shape[1] / sample["height"], pixels.shape[2] / sample["width"]
    ignored, teacher_features = torch.zeros(2, *pixels.shape[1:], dtype=torch.bool)
    for annotation in sample["annotations"]:
        x, y, w, h = annotation["bbox"]
        rows = slice(round(y * scale[0]), round((y + h) * scale[0]))
        columns = slice(round(x * scale[1]), round((x + w) * scale[1]))
        (ignored if annotation.get("iscrowd", 0) else teacher_features)[rows, columns] = True
    hidden = ignored & ~teacher_features
    if not hidden.any():
        return pixels
    return torch.where(hidden, torch.tensor(MEAN).round().to(pixels.dtype)[:, None, None], pixels)


def _apply(transforms: list[T.Transform], pixels: torch.Tensor) -> torch.Tensor:
    """(3, H, W), contiguous, in memory of its own."""
    image = pixels
    for transform in transforms:
        if isinstance(transform, T.ResizeTransform):
            size = (transform.new_h, transform.new_w)
            if image.shape[1:] != size:
                image = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        elif isinstance(transform, T.HFlipTransform):
            image = image.flip(2)
        else:
            assert isinstance(transform, T.NoOpTransform)
    return image.clone(memory_format=torch.contiguous_format) if image is pixels else image.contiguous()


# ---------------------------------------------------------------------------------------------------- purity


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


class _Stream(Dataset[Sample]):
    """Samples by (position in the stream, index in the data set)."""

    def __init__(self, records: list[Sample], mapper: _Mapper, seed: int) -> None:
        self._records = DatasetFromList(records, copy=False)
        self._mapper = mapper
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, index = key
        with _random_states(self._seed, position):
            return self._mapper(self._records[index])


class _Batches(Sampler[list[tuple[int, int]]]):
    """This rank's endless batches of (position, index), from batch number ``start`` on.

    wide: for each image whether it is wider than high, to put alike images into a batch as detectron2's
    AspectRatioGroupedDataset does; None for no grouping. That class groups samples after they were loaded: its
    half-filled buckets are lost in a resume and its order changes with the number of workers. Grouping the indices
    gives the same batches and keeps them a function of the seed alone; a resume replays the integers.
    """

    def __init__(self, size: int, seed: int, batch: int, wide: list[bool] | None, start: int) -> None:
        self._sampler = TrainingSampler(size, seed=seed)
        self._batch = batch
        self._wide = wide
        self._start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._all(), self._start, None)

    def _all(self) -> Iterator[list[tuple[int, int]]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        buckets: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        for step, index in enumerate(self._sampler):
            bucket = buckets[self._wide[index] if self._wide else 0]
            bucket.append((rank + step * world, index))
            if len(bucket) == self._batch:
                yield bucket[:]
                bucket.clear()


# --------------------------------------------------------------------------------------------------- loaders


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
    cache_bytes: int | None = None,
) -> Iterable[list[Sample]]:
    """Endless training batches in detectron2's format, a pure function of (seed, position, these sizes).

    batch_size: images a step, all processes together. min_sizes: shorter sides (pixels) to choose from; max_size:
    longest longer side. masks: with ``gt_masks``. workers: see :func:`worker_processes`; they change nothing about the
    batches. cuda: batches go to a GPU, so they come in pinned memory. start: samples that all processes together have
    consumed; a multiple of batch_size, and batches go on as if there had been no break. keep_empty: train also on
    images without objects. group_aspect: put wide and high images into separate batches, as detectron2 does.
    cache_bytes: budget for decoded images, divided between the workers; None for this process's shared gibibyte.

    Iterating again begins at ``start`` again. Raises InputError for sizes that do not fit and, with masks, for
    annotations without a segmentation.
    """
    world = comm.get_world_size()
    if batch_size < 1 or batch_size % world:
        raise InputError(f"batch size {batch_size} cannot be divided between {world} processes")
    if start < 0 or start % batch_size:
        raise InputError(f"start {start} is not a multiple of the batch size {batch_size}")
    if not min_sizes:
        raise InputError("min_sizes is empty")
    if not keep_empty:
        check_objects(dataset)
    _register(dataset)
    records = _records(dataset.train, filter_empty=not keep_empty)
    processes = worker_processes(workers, cuda=cuda)
    mapper = _Mapper(
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
        _Stream(records, mapper, seed),
        batch_sampler=_Batches(len(records), seed, batch_size // world, wide, start // batch_size),
        num_workers=processes,
        collate_fn=trivial_batch_collator,
        # Otherwise each iterator draws from torch's global state.
        generator=_own_generator(),
        persistent_workers=processes > 0,
        pin_memory=cuda,
    )


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
    :func:`train_loader`.
    """
    _register(dataset)
    processes = worker_processes(workers, cuda=cuda)
    mapper = _Mapper(
        min_sizes=(min_size,),
        max_size=max_size,
        flip=False,
        labels=with_labels,
        masks=False,
        mask_format="polygon",
        cache=_cache(cache_bytes, processes),
    )
    loader = build_detection_test_loader(
        _records(dataset.val, filter_empty=False),
        mapper=mapper,
        num_workers=processes,
        batch_size=batch_size,
    )
    # detectron2 has no arguments for these, and an evaluation must not move torch's global state either.
    loader.generator = _own_generator()
    loader.pin_memory = cuda
    return cast("DataLoader[list[Sample]]", loader)


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
    return max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) // here - 1))


def _own_generator() -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(0)
    return generator


def _cache(budget: int | None, workers: int) -> ImageCache:
    if budget is None and workers == 0:
        return _shared_cache
    # Each worker process fills a copy of its own.
    return ImageCache((_CACHE_BYTES if budget is None else budget) // max(workers, 1))


def _records(name: str, filter_empty: bool) -> list[Sample]:
    return cast("list[Sample]", get_detection_dataset_dicts([name], filter_empty=filter_empty))


def check_objects(dataset: DataSet) -> None:
    """Raise InputError, one line, when the training split has no object."""
    if dataset.counts.train.objects == 0:
        dropped = f"; dropped: {dataset.layout.dropped[0]}" if dataset.layout.dropped[0] else ""
        raise InputError(f"{dataset.layout.train_json} has no object to train on{dropped}")


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


def _register(dataset: DataSet) -> None:
    # Here, not at the top: lgd.data imports this module.
    from lgd.data import register

    register(dataset)
