"""From a record of the data set to a training sample: decode, resize, flip."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks
from torch.nn import functional

from lgd.data.images import read_image
from lgd.errors import InputError
from lgd.storage.object_path import ObjectPath
from lgd.storage.outputs import is_url
from lgd.storage.store import StorageError

__all__ = ["CACHE_BYTES", "FastDatasetMapper", "ImageCache", "ReadError", "Sample", "StoreReadError"]

Sample = dict[str, Any]

CACHE_BYTES = 2**30
"""Default budget of decoded images."""


class ReadError(InputError):
    """An image cannot be read. One line, also where torch raises it again from what a worker process raised."""

    def __init__(self, message: str) -> None:
        # torch makes it "Caught ReadError in DataLoader worker process 0." and a traceback that ends with this error.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class StoreReadError(ReadError, StorageError):
    """An image cannot be read because its store does not answer, or refuses: the training may go on later."""


class ImageCache:
    """Decoded images up to a budget of bytes; what does not fit is decoded each time.

    Nothing is evicted: an epoch reads every image once, and dropping the oldest would then drop each image just
    before it is needed again.
    """

    def __init__(self, budget: int = CACHE_BYTES) -> None:
        self.budget = budget
        self.used = 0
        self._images: dict[tuple[str, int, int | str, int], torch.Tensor] = {}

    def read(self, path: str, shrink: int = 1) -> torch.Tensor:
        """(3, H, W) uint8, BGR, a view that nobody may write to; see :func:`lgd.data.images.read_image`."""
        key = (path, shrink, *_version(path))
        image = self._images.get(key)
        if image is None:
            image = torch.from_numpy(read_image(path, shrink)).permute(2, 0, 1)
            if self.used + image.nbytes <= self.budget:
                self._images[key] = image
                self.used += image.nbytes
        return image


def _version(path: str) -> tuple[int | str, int]:
    """What changes with the image, and its size in bytes."""
    if is_url(path):
        entry = ObjectPath.of(path).find()
        # Where there is none, whoever reads it says so.
        return ("", 0) if entry is None else entry
    try:
        status = os.stat(path)  # noqa: PTH116 - twice as fast as Path's, once a sample
    except OSError:
        # Whoever reads it says why.
        return "", 0
    return status.st_mtime_ns, status.st_size


class FastDatasetMapper(DatasetMapper):
    """DatasetMapper in less time, which can also keep the labels without training augmentations.

    The same augmentations draw the same numbers and do the same to the annotations; the image is read through a cache,
    resized by torch (2.5 times as fast as by Pillow, and within one level of 255 of it) and written once. A JPEG that
    will at least be halved whatever is drawn is decoded at a half, a quarter or an eighth of its size.
    paint: hide the regions to ignore in training (see :func:`_paint_ignored`).
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
        self._augmentations: list[T.Augmentation] = [T.ResizeShortestEdge(list(min_sizes), max_size, "choice")]
        if flip:
            self._augmentations.append(T.RandomFlip())
        self._largest = (max(min_sizes), max_size)
        super().__init__(
            is_train=labels,
            augmentations=self._augmentations,
            image_format="BGR",
            use_instance_mask=masks,
            instance_mask_format=mask_format,
        )
        self.cache = cache

    def __call__(self, dataset_dict: Sample) -> Sample:
        """dataset_dict is owned and changed: DatasetFromList unpickles a new one each time."""
        height, width = dataset_dict["height"], dataset_dict["width"]
        shrink = self.shrink(height, width)
        try:
            pixels = self.cache.read(dataset_dict["file_name"], shrink)
        except StorageError as error:
            raise StoreReadError(str(error)) from None
        except InputError as error:
            raise ReadError(str(error)) from None
        if pixels.shape[1:] not in ((height, width), (-(-height // shrink), -(-width // shrink))):
            detection_utils.check_image_size(dataset_dict, pixels.permute(1, 2, 0))
        if self._paint and self.is_train:
            pixels = _paint_ignored(pixels, dataset_dict)
        transforms = self._random_transforms(height, width)
        image = _apply_transforms(transforms, pixels)
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

    def _random_transforms(self, height: int, width: int) -> list[T.Transform]:
        """Draw the transforms of one sample. The augmentations need only the image's shape."""
        transforms = []
        for augmentation in self._augmentations:
            transform = augmentation.get_transform(np.broadcast_to(np.uint8(0), (height, width, 3)))
            if isinstance(transform, T.ResizeTransform):
                height, width = transform.new_h, transform.new_w
            transforms.append(transform)
        return transforms


PIXEL_MEAN = (103.53, 116.28, 123.675)
"""BGR of what a detector sees as zero: ImageNet's mean, as in lgd/detectors/conventions.py."""


def _paint_ignored(pixels: torch.Tensor, sample: Sample) -> torch.Tensor:
    """The image with its regions to ignore (crowds) in the mean colour, but for what labelled boxes cover.

    Nothing of what may or may not be a person there is trained on as background, whatever the detector.
    """
    scale = pixels.shape[1] / sample["height"], pixels.shape[2] / sample["width"]
    ignored, labelled = torch.zeros(2, *pixels.shape[1:], dtype=torch.bool)
    for annotation in sample["annotations"]:
        x, y, w, h = annotation["bbox"]
        # Boxes may begin a little outside, where a negative index would count from the other side.
        rows = slice(max(0, round(y * scale[0])), max(0, round((y + h) * scale[0])))
        columns = slice(max(0, round(x * scale[1])), max(0, round((x + w) * scale[1])))
        (ignored if annotation.get("iscrowd", 0) else labelled)[rows, columns] = True
    hidden = ignored & ~labelled
    if not hidden.any():
        return pixels
    return torch.where(hidden, torch.tensor(PIXEL_MEAN).round().to(pixels.dtype)[:, None, None], pixels)


def _apply_transforms(transforms: list[T.Transform], pixels: torch.Tensor) -> torch.Tensor:
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
