"""Images a second of our loader and of detectron2's default one, side by side.

python -m benchmarks.loader coco-json:DIR --size 200 800 --workers 0 2 --output benchmarks/results/NAME

Both read the same training images, resize their shorter side, flip half of them and make ``Instances``; both in this
process or with as many workers. They take turns, so that whatever else the machine does falls on both. Ours decodes
every image anew, as with a data set that is larger than its cache; with --cached it may keep them.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetMapper, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T

from lgd.cli import Parser, answer
from lgd.data.catalog import resolve
from lgd.data.dataset import DataSet
from lgd.data.loaders import train_loader
from lgd.data.shapes import ShapesSpec
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results import provenance


def ours(dataset: DataSet, options: argparse.Namespace, size: int, workers: int) -> Iterator[list[dict[str, Any]]]:
    return iter(
        train_loader(
            dataset,
            batch_size=options.batch,
            min_sizes=(size,),
            max_size=options.max_size,
            flip=True,
            masks=False,
            seed=0,
            workers=workers,
            cache_bytes=None if options.cached else 0,
        )
    )


def theirs(dataset: DataSet, options: argparse.Namespace, size: int, workers: int) -> Iterator[list[dict[str, Any]]]:
    augmentations = [T.ResizeShortestEdge([size], options.max_size, "choice"), T.RandomFlip()]
    return iter(
        build_detection_train_loader(
            get_detection_dataset_dicts([dataset.train]),
            mapper=DatasetMapper(True, augmentations=augmentations, image_format="BGR"),
            total_batch_size=options.batch,
            num_workers=workers,
        )
    )


def measure(loader: Iterator[list[dict[str, Any]]], batches: int) -> float:
    """Images a second over the next batches."""
    begun = time.perf_counter()
    images = sum(len(batch) for batch in itertools.islice(loader, batches))
    return images / (time.perf_counter() - begun)


def compare(dataset: DataSet, options: argparse.Namespace, size: int, workers: int) -> list[dict[str, Any]]:
    """A row each: the median of the rounds, their least and most."""
    loaders = {"lgd": ours(dataset, options, size, workers), "detectron2": theirs(dataset, options, size, workers)}
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for loader in loaders.values():
        # Workers start, files come into the system's cache; and what was prefetched is used up.
        measure(loader, options.batches)
    for _ in range(options.rounds):
        for name, loader in loaders.items():
            speeds[name].append(measure(loader, options.batches))
    return [
        {
            "loader": name,
            "data": options.source.rsplit("/", 1)[-1],
            "size": size,
            "max_size": options.max_size,
            "workers": workers,
            "cached": options.cached,
            "batch": options.batch,
            "rounds": options.rounds,
            "images_per_second": round(statistics.median(found), 1),
            "least": round(min(found), 1),
            "most": round(max(found), 1),
        }
        for name, found in speeds.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 2 wrong input, 130 interrupted."""
    return answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    """Print a row for each loader and number of workers, and write loader.csv where an output is given."""
    parser = Parser(prog="python -m benchmarks.loader", description="Our loader and detectron2's.")
    parser.add_argument("source", metavar="DATASET", help="as --data takes it, such as coco-json:DIR")
    parser.add_argument("--size", type=int, nargs="+", default=[800], help="shorter sides, pixels, one after the other")
    parser.add_argument("--max-size", type=int, default=1333, help="longest longer side, pixels (default: 1333)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="to try one after the other")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=10, help="of a turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each")
    parser.add_argument("--cached", action="store_true", help="let ours keep decoded images in memory")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where loader.csv goes")
    options = parser.parse_args(arguments)
    for name, least in (("size", 1), ("max_size", 1), ("workers", 0), ("batch", 1), ("batches", 1), ("rounds", 1)):
        given = getattr(options, name)
        if min(given if isinstance(given, list) else [given]) < least:
            raise InputError(f"--{name.replace('_', '-')} {given}: at least {least}")
    # What each loader gets for itself when a model needs the rest.
    torch.set_num_threads(1)
    dataset = resolve(options.source, shapes=ShapesSpec())
    hardware = provenance.hardware()
    rows = []
    for size, workers in itertools.product(options.size, options.workers):
        for row in compare(dataset, options, size, workers):
            rows.append({**row, **hardware, "git_commit": provenance.git_commit()})
            print(
                f"{row['loader']:<12}{size:>5} pixels {workers:>3} workers {row['images_per_second']:>8} images/s",
                flush=True,
            )
    if options.output:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(options.output / "loader.csv", table.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
