"""Images with what is annotated or detected in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_util
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from lgd.data.dataset import DataSet
from lgd.data.images import Pixels, read_image
from lgd.errors import InputError
from lgd.files import atomic_write

__all__ = ["draw", "save_image", "with_annotations"]

_COLOURS = ("red", "lime", "dodgerblue", "yellow", "magenta", "cyan", "orange", "springgreen", "hotpink", "gold")


def draw(dataset: DataSet, count: int, directory: Path) -> list[Path]:
    """Write ``count`` images a split, evenly over the split, with boxes, masks and class names.

    Crowds and ignored regions are white.
    """
    layout = dataset.layout
    names = dict(zip(layout.category_ids, dataset.class_names, strict=True))
    written = []
    for split, file, folder in (
        ("train", layout.train_json, layout.train_images),
        ("val", layout.val_json, layout.val_images),
    ):
        contents = json.loads(file.read_bytes())
        images = contents["images"]
        for index in np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int):
            image = images[index]
            annotations = [x for x in contents["annotations"] if x["image_id"] == image["id"]]
            path = directory / f"{split}-{image['id']}.png"
            save_image(with_annotations(read_image(folder / image["file_name"]), annotations, names), path)
            written.append(path)
    return written


def save_image(image: torch.Tensor, path: Path) -> None:
    """Write (3, H, W) uint8, RGB. Raises InputError, one line, where it cannot be written."""
    try:
        with atomic_write(path) as temporary:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


def with_annotations(pixels: Pixels, annotations: list[dict[str, Any]], names: dict[int, str]) -> torch.Tensor:
    """(3, H, W) uint8, RGB.

    annotations: COCO's annotations, or its results, whose scores are shown. names: of the classes, by category id.
    """
    image = torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy())
    if not annotations:
        return image
    labels = {number: label for label, number in enumerate(names)}
    colours = ["white" if x.get("iscrowd") else _COLOURS[labels[x["category_id"]] % len(_COLOURS)] for x in annotations]
    shaped = [i for i, x in enumerate(annotations) if x.get("segmentation")]
    if shaped:
        masks = torch.stack([_mask(annotations[i]["segmentation"], *pixels.shape[:2]) for i in shaped])
        image = draw_segmentation_masks(image, masks, alpha=0.4, colors=[colours[i] for i in shaped])
    boxes = torch.tensor([x["bbox"] for x in annotations], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    # A detector may predict a box of negative size, which cannot be drawn.
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])], dim=1)
    texts = [names[x["category_id"]] + (f" {x['score']:.2f}" if "score" in x else "") for x in annotations]
    return draw_bounding_boxes(image, boxes, labels=texts, colors=colours, width=2)


def _mask(segmentation: Any, height: int, width: int) -> torch.Tensor:
    """(H, W) bool, of polygons or of run lengths."""
    runs = segmentation
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        runs = mask_util.frPyObjects(segmentation, height, width)
    return torch.from_numpy(mask_util.decode(mask_util.merge(runs) if isinstance(runs, list) else runs)).bool()
