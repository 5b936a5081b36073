"""What a data set holds and what is wrong with it, as text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from lgd.data.dataset import DataSet
from lgd.data.layout import Problem

__all__ = ["AREAS", "LISTED", "list_problems", "report"]

LISTED = 10
"""Problems of a kind that are listed unless all are asked for."""

AREAS = {"APs": (0.0, 32.0**2), "APm": (32.0**2, 96.0**2), "APl": (96.0**2, float("inf"))}
"""Square pixels of COCO's small, medium and large objects."""


def list_problems(problems: list[Problem], listed: int | None = LISTED) -> Iterator[str]:
    """A line for each problem, kind by kind; of each kind the first ``listed`` (None for all) and how many more."""
    by_kind: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault((problem.outcome, problem.kind), []).append(problem)
    for (outcome, kind), alike in by_kind.items():
        yield from map(str, alike[:listed])
        if listed is not None and len(alike) > listed:
            yield f"{outcome:<8}{kind:<20}and {len(alike) - listed} more: --verbose lists all"


def report(dataset: DataSet, problems: list[Problem], listed: int | None = LISTED) -> Iterator[str]:
    """The lines of a report: the problems, how many of a kind, then what training and evaluation will see.

    listed: problems of a kind that are listed, None for all.
    """
    yield from list_problems(problems, listed)
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
