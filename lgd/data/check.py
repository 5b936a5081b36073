"""What a data set holds and what is wrong with it, as text and as pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pycocotools import mask as mask_util
from tabulate import tabulate
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from lgd.data.dataset import DataSet
from lgd.data.images import Pixels, read
from lgd.data.layout import Problem
from lgd.errors import InputError
from lgd.files import atomic_write

__all__ = ["AREAS", "draw", "report"]

_COLOURS = ("red", "lime", "dodgerblue", "yellow", "magenta", "cyan", "orange", "springgreen", "hotpink", "gold")

AREAS = {"APs": (0.0, 32.0**2), "APm": (32.0**2, 96.0**2), "APl": (96.0**2, float("inf"))}
"""Square pixels of COCO's small, medium and large objects."""


def report(dataset: DataSet, problems: list[Problem]) -> Iterator[str]:
    """The lines of a report: every problem, then how many of a kind, then what training and evaluation will see."""
    yield from map(str, problems)
    if problems:
        yield ""
    yield f"{dataset.source}: {dataset.root}"
    yield f"fingerprint {dataset.fingerprint}"
    splits = {"train": dataset.layout.train_json, "val": dataset.layout.val_json}
    contents = {split: json.loads(path.read_bytes()) for split, path in splits.items()}
    yield ""
    rows = {split: _numbers(x) for split, x in contents.items()}
    both = [[name, *(column[name] for column in rows.values())] for name in rows["train"]]
    yield tabulate(both, ["", *rows], disable_numparse=True)
    yield ""
    counts = {
        split: Counter(x["category_id"] for x in found["annotations"] if not x["iscrowd"])
        for split, found in contents.items()
    }
    names = zip(dataset.layout.category_ids, dataset.class_names, strict=True)
    table = [[label, number, name, *(counts[x][number] for x in counts)] for label, (number, name) in enumerate(names)]
    yield tabulate(table, ["label", "id", "class", "train objects", "val objects"])
    yield ""
    kinds = Counter((x.outcome, x.kind) for x in problems)
    summary = [[*kind, count] for kind, count in sorted(kinds.items())]
    yield tabulate(summary, ["outcome", "problem", "times"]) if summary else "no problem"


def _numbers(contents: dict[str, Any]) -> dict[str, str]:
    """A split's column of the report."""
    objects = [x for x in contents["annotations"] if not x["iscrowd"]]
    per_image = Counter(x["image_id"] for x in objects)
    numbers = np.array([per_image[x["id"]] for x in contents["images"]])
    sides = np.array([(x["width"], x["height"]) for x in contents["images"]])
    boxes = np.array([x["bbox"][2:] for x in objects]).reshape(-1, 2)
    areas = [x["area"] for x in objects]
    rows = {
        "images": f"{len(numbers)}",
        "objects": f"{len(objects)}",
        "crowds or ignored": f"{len(contents['annotations']) - len(objects)}",
        "images without objects": f"{(numbers == 0).sum()}",
        "objects an image, mean": f"{numbers.mean():.2f}",
        "objects an image, 95th percentile": f"{np.percentile(numbers, 95):.0f}",
        "objects with a mask": f"{sum(bool(x.get('segmentation')) for x in objects)}",
    }
    for name, column in (("width", 0), ("height", 1)):
        rows[f"image {name}, least / median / most"] = _spread(sides[:, column])
    for name, column in (("width", 0), ("height", 1)):
        rows[f"box {name}, least / median / most"] = _spread(boxes[:, column])
    for name, (low, high) in zip(("small", "medium", "large"), AREAS.values(), strict=True):
        rows[f"{name} objects"] = f"{sum(low <= x < high for x in areas)}"
    return rows


def _spread(values: npt.NDArray[np.float64]) -> str:
    if not len(values):
        return "–"
    return f"{values.min():.0f} / {np.median(values):.0f} / {values.max():.0f}"


def draw(dataset: DataSet, count: int, directory: Path) -> list[Path]:
    """Write pictures of ``count`` images a split, evenly over the split, with boxes, masks and class names.

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
            found = [x for x in contents["annotations"] if x["image_id"] == image["id"]]
            path = directory / f"{split}-{image['id']}.png"
            picture = _picture(read(folder / image["file_name"]), found, names)
            try:
                with atomic_write(path) as temporary:
                    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary)
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror})") from None
            written.append(path)
    return written


def _picture(pixels: Pixels, annotations: list[dict[str, Any]], names: dict[int, str]) -> torch.Tensor:
    """(3, H, W) uint8, RGB."""
    picture = torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy())
    if not annotations:
        return picture
    labels = {number: label for label, number in enumerate(names)}
    colours = ["white" if x["iscrowd"] else _COLOURS[labels[x["category_id"]] % len(_COLOURS)] for x in annotations]
    shaped = [i for i, x in enumerate(annotations) if x.get("segmentation")]
    if shaped:
        masks = torch.stack([_mask(annotations[i]["segmentation"], *pixels.shape[:2]) for i in shaped])
        picture = draw_segmentation_masks(picture, masks, alpha=0.4, colors=[colours[i] for i in shaped])
    boxes = torch.tensor([x["bbox"] for x in annotations], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    texts = [names[x["category_id"]] for x in annotations]
    return draw_bounding_boxes(picture, boxes, labels=texts, colors=colours, width=2)


def _mask(segmentation: Any, height: int, width: int) -> torch.Tensor:
    """(H, W) bool, of polygons or of run lengths."""
    runs = segmentation
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        runs = mask_util.frPyObjects(segmentation, height, width)
    return torch.from_numpy(mask_util.decode(mask_util.merge(runs) if isinstance(runs, list) else runs)).bool()
