"""Small data sets in every layout, written by tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lgd.data.shapes import ShapesSpec

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL_SHAPES = ShapesSpec(4, 2, 64)
COCO_TINY = next(
    (path for path in (REPOSITORY / "../shared/data/coco_tiny", Path("/work/shared/data/coco_tiny")) if path.is_dir()),
    None,
)
"""Real images of COCO 2017 in its layout, where this machine has them."""


def coco_contents(first_id: int) -> dict[str, Any]:
    """Annotations of three images with gaps in the category ids; the third has a crowd only."""
    images = [
        {"id": first_id + i, "file_name": f"{first_id + i:012d}.jpg", "width": 40 + 8 * i, "height": 48}
        for i in range(3)
    ]
    square = [[5, 5, 20, 5, 20, 20, 5, 20]]
    base = {"area": 225, "bbox": [5, 5, 15, 15], "iscrowd": 0}
    crowd = {"counts": [100, 50, 56 * 48 - 150], "size": [48, 56]}
    annotations: list[dict[str, Any]] = [
        {**base, "id": 11, "image_id": first_id, "category_id": 7, "segmentation": square},
        {**base, "id": 12, "image_id": first_id, "category_id": 3, "segmentation": square},
        {**base, "id": 13, "image_id": first_id + 1, "category_id": 3, "segmentation": square},
        {**base, "id": 14, "image_id": first_id + 2, "category_id": 7, "iscrowd": 1, "segmentation": crowd},
    ]
    # Not sorted by id, and without "info", as real files are.
    categories = [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco_split(root: Path, split: str, suffix: str = "", folder: str | None = None, first_id: int = 1) -> Path:
    """One split in COCO layout; returns its annotation file."""
    found = coco_contents(first_id)
    images = root / (folder or f"{split}{suffix}")
    images.mkdir(parents=True, exist_ok=True)
    for image in found["images"]:
        pixels = np.full((image["height"], image["width"], 3), image["id"], np.uint8)
        Image.fromarray(pixels).save(images / image["file_name"])
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / f"instances_{split}{suffix}.json"
    path.write_text(json.dumps(found))
    return path


def write_coco(root: Path, suffix: str = "2017") -> Path:
    write_coco_split(root, "train", suffix)
    write_coco_split(root, "val", suffix, first_id=100)
    return root


def write_roboflow(root: Path, val: str = "valid") -> Path:
    """Roboflow's layout: each split's annotations beside its images."""
    for split, first_id in (("train", 1), (val, 100)):
        write_coco_split(root, split, first_id=first_id).rename(root / split / "_annotations.coco.json")
    (root / "annotations").rmdir()
    return root


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


BCCD = COCO_TINY.parent / "bccd" if COCO_TINY else None


VocObject = tuple[str, tuple[int, int, int, int], bool]


VOC_SPLITS: dict[str, dict[str, list[VocObject]]] = {
    "trainval": {"a 1": [("dog", (1, 1, 60, 50), False), ("cat", (5, 6, 20, 30), True)], "b": []},
    "test": {"c": [("cat", (2, 2, 9, 9), False), ("dog", (10, 10, 30, 30), True)]},
}


def write_voc(root: Path, splits: dict[str, dict[str, list[VocObject]]], size: tuple[int, int] = (60, 50)) -> Path:
    """A directory of images by split and name, each with (class, corners, difficult) objects."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in images))
        for name, objects in images.items():
            Image.new("RGB", size).save(root / f"JPEGImages/{name}.jpg")
            (root / f"Annotations/{name}.xml").write_text(voc_xml(objects, size))
    return root


def voc_xml(objects: list[VocObject], size: tuple[int, int]) -> str:
    parts = [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"]
    for name, corners, difficult in objects:
        box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        parts.append(
            f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox>{box}</bndbox></object>"
        )
    return f"<annotation>{''.join(parts)}</annotation>"


def write_crowdhuman(root: Path, train: list[Any], val: list[Any]) -> Path:
    """A directory; each line of a split is written as it is when it is text."""
    (root / "Images").mkdir(parents=True)
    for split, lines in (("train", train), ("val", val)):
        (root / f"annotation_{split}.odgt").write_text(
            "".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines)
        )
        for line in lines:
            if isinstance(line, dict) and "ID" in line:
                Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(root / f"Images/{line['ID']}.jpg")
    return root


def person_box(box: Any, **more: Any) -> dict[str, Any]:
    return {"tag": "person", "fbox": box, "vbox": [0, 0, 1, 1], "hbox": [0, 0, 1, 1], "extra": {"box_id": 0}, **more}


YOLO_LABELS: dict[str, dict[str, str]] = {
    "train": {"a": "1 0.5 0.5 0.5 0.4\n0 0.25 0.2 0.5 0.2 0.5 0.6\n", "sub/b": "0 0.1 0.1 0.1 0.1\n", "empty": ""},
    "val": {"c": "0 0.5 0.5 1 1\n"},
}
"""By split and image; images are 60 x 50 pixels."""


def write_yolo(root: Path, labels: dict[str, dict[str, str]] | None = None, described: str | None = None) -> Path:
    """Ultralytics' layout: images/SPLIT, labels/SPLIT and data.yaml. An image's text "" makes no label file."""
    labels = YOLO_LABELS if labels is None else labels
    for split, images in labels.items():
        for name, text in images.items():
            for folder, suffix in (("images", "jpg"), ("labels", "txt")):
                path = root / folder / split / f"{name}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                if suffix == "jpg":
                    Image.new("RGB", (60, 50)).save(path)
                elif text:
                    path.write_text(text)
    lines = "".join(f"{split}: images/{split}\n" for split in labels)
    (root / "data.yaml").write_text(f"{lines}names: [cat, dog]\n" if described is None else described)
    return root
