"""Label files of Ultralytics' YOLO layout: a text file an image, an object a line.

``class x y width height`` is a box by its centre, ``class x1 y1 x2 y2 x3 y3 ...`` a polygon; all but the class are in
parts of the image's width and height.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from typing import Any

from lgd.data.layout import Problem, RawSplit
from lgd.files import read_file

__all__ = ["add_labels", "label_path"]

_LARGEST = 2.0
"""Largest value that may be a part of a side; what is larger is a number of pixels."""


def label_path(image: str) -> str:
    """``.../labels/a.txt`` of ``.../images/a.jpg``; beside the image where no directory is called images."""
    head, images, tail = image.rpartition(f"{os.sep}images{os.sep}")
    path = f"{head}{os.sep}labels{os.sep}{tail}" if images else image
    return f"{path.rpartition('.')[0]}.txt"


def add_labels(raw: RawSplit, images: list[str], *, boxes_only: bool) -> int:
    """Add the objects of the images, whose ids count from 1; returns how many label files there are.

    An image without a label file has no object. boxes_only: keypoints follow the box on each line.
    """
    files = 0
    for number, image in enumerate(images, 1):
        path = label_path(image)
        try:
            # A Path for each of 100,000 files takes as long as reading it.
            data = read_file(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raw.problems.append(Problem("dropped", "broken file", path, f"cannot be read ({error.strerror})"))
            continue
        files += 1
        _add_file(raw, path, data, number, boxes_only)
    return files


def _add_file(raw: RawSplit, path: str, data: bytes, image: int, boxes_only: bool) -> None:
    seen: set[tuple[bytes, ...]] = set()
    for number, line in enumerate(data.removeprefix(BOM_UTF8).split(b"\n"), 1):
        words = tuple(line.split())
        if not words:
            continue
        where = f"{path}:{number}"
        if words in seen:
            raw.problems.append(Problem("dropped", "duplicate line", where, "a line before it says the same"))
            continue
        seen.add(words)
        found = _object(words, boxes_only)
        if isinstance(found, str):
            shown = line.decode(errors="backslashreplace").strip()[:60]
            raw.problems.append(Problem("dropped", "broken line", where, f"{shown!r}: {found}"))
            continue
        raw.annotations.append({"_where": where, "id": len(raw.annotations) + 1, "image_id": image, **found})


def _object(words: tuple[bytes, ...], boxes_only: bool) -> dict[str, Any] | str:
    """An annotation in parts of the image's sides, or why the line cannot be used."""
    try:
        category, *values = map(float, words)
    except ValueError:
        return "is not numbers alone"
    if not category.is_integer():
        return "does not begin with the number of a class"
    if boxes_only:
        values = values[:4]
    if not all(abs(x) <= _LARGEST for x in values):
        return "is not in parts of the image's width and height"
    if len(values) == 4:
        x, y, width, height = values
        return {"category_id": int(category), "bbox": [x - width / 2, y - height / 2, width, height], "iscrowd": 0}
    if len(values) < 6 or len(values) % 2:
        return f"has {len(words)} values; a box has 5, a polygon of three points 7, each more point two"
    xs, ys = values[::2], values[1::2]
    left, top = min(xs), min(ys)
    return {
        "category_id": int(category),
        "bbox": [left, top, max(xs) - left, max(ys) - top],
        "segmentation": [values],
        "area": _area(xs, ys),
        "iscrowd": 0,
    }


def _area(xs: list[float], ys: list[float]) -> float:
    """Area of a polygon, by the shoelace formula."""
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
