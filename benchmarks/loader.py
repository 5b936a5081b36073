"""Images a second of our loader and of detectron2's default one, side by side.

Both read the same training images, resize their shorter side, flip half of them and make ``Instances``; both in this
process or with as many workers. They take turns, so that whatever else the machine does falls on both; at the beginning
of a turn what was prefetched before it is used up. Ours decodes every image anew, as with a data set larger than its
cache; with --cached it may keep them.
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
from typing import TYPE_CHECKING, Any

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from lgd.cli import Parser, examples, exit_status
    from lgd.config.data_source import add_data_arguments, source_of, split_overrides
    from lgd.config.experiment import Experiment
    from lgd.errors import InputError
    from lgd.files import write_text

if TYPE_CHECKING:
    from lgd.data.dataset import DataSet

PROG = "benchmarks/loader.py"

DESCRIPTION = "Compare the images a second of our loader with those of detectron2's default one (docs/data.md)."

EXAMPLES = (
    "coco-json:DIR --size 200 800 --workers 0 2 --output benchmarks/results/NAME",
    "coco-json:DIR --cached",
)

PREFETCHED = 2
"""Batches of a worker that are ready before they are asked for: torch's default."""

Batches = Iterator[list[dict[str, Any]]]


def lgd_loader(dataset: DataSet, options: argparse.Namespace, size: int, workers: int) -> Batches:
    # Here, not at the top, as everything that loads torch: --help takes a fraction of a second.
    from lgd.data.loaders import train_loader

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


def detectron2_loader(dataset: DataSet, options: argparse.Namespace, size: int, workers: int) -> Batches:
    from detectron2.data import DatasetMapper, build_detection_train_loader, get_detection_dataset_dicts
    from detectron2.data import transforms as T

    augmentations = [T.ResizeShortestEdge([size], options.max_size, "choice"), T.RandomFlip()]
    return iter(
        build_detection_train_loader(
            get_detection_dataset_dicts([dataset.train]),
            mapper=DatasetMapper(True, augmentations=augmentations, image_format="BGR"),
            total_batch_size=options.batch,
            num_workers=workers,
        )
    )


def measure(loader: Batches, batches: int) -> float:
    """Images a second over the next batches."""
    begun = time.perf_counter()
    images = sum(len(batch) for batch in itertools.islice(loader, batches))
    return images / (time.perf_counter() - begun)


def compare(dataset: DataSet, options: argparse.Namespace, size: int, workers: int) -> list[dict[str, Any]]:
    """A row each: the median of the rounds, their least and most."""
    loaders = {
        "lgd": lgd_loader(dataset, options, size, workers),
        "detectron2": detectron2_loader(dataset, options, size, workers),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for loader in loaders.values():
        # Workers start, and files come into the system's cache.
        measure(loader, options.batches)
    for turn in range(options.rounds):
        for name in sorted(loaders, reverse=bool(turn % 2)):
            # What its workers have ready, PREFETCHED batches each in ours; the other's workers fill theirs meanwhile.
            measure(loaders[name], PREFETCHED * workers + 1)
            speeds[name].append(measure(loaders[name], options.batches))
    return [
        {
            "loader": name,
            "data": dataset.source.rsplit("/", 1)[-1],
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


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 measured, 2 wrong input, 130 interrupted."""
    return exit_status(lambda: run(parser(prog).parse_args(arguments)))


def parser(prog: str = PROG) -> Parser:
    found = Parser(prog=prog, description=DESCRIPTION, epilog=examples(prog, *EXAMPLES))
    add_arguments(found)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", nargs="?", metavar="DATASET", help="as --data takes it, such as coco-json:DIR")
    add_data_arguments(parser)
    add("--size", type=int, nargs="+", default=[800], help="shorter sides, pixels, one after the other (default: 800)")
    add("--max-size", type=int, default=1333, help="longest longer side, pixels (default: 1333)")
    add("--workers", type=int, nargs="+", default=[0, 2], help="to try one after the other (default: 0 2)")
    add("--batch", type=int, default=8, help="images (default: 8)")
    add("--batches", type=int, default=10, help="of a turn (default: 10)")
    add("--rounds", type=int, default=7, help="turns of each (default: 7)")
    add("--cached", action="store_true", help="let ours keep decoded images in memory")
    add("--output", type=Path, metavar="DIR", help="where loader.csv goes")


def run(options: argparse.Namespace) -> int:
    """Print a row for each loader and number of workers, and write loader.csv where an output is given."""
    source = source_of(options, options.source)
    data = Experiment().override(split_overrides(options)).data
    if source is None:
        raise InputError("name a DATASET, or --train-json, --val-json and --images")
    for name, least in (("size", 1), ("max_size", 1), ("workers", 0), ("batch", 1), ("batches", 1), ("rounds", 1)):
        given = getattr(options, name)
        if min(given if isinstance(given, list) else [given]) < least:
            raise InputError(f"--{name.replace('_', '-')} {given}: at least {least}")
    import torch

    from lgd.data.catalog import resolve
    from lgd.data.shapes import ShapesSpec
    from lgd.data.split import val_split_of
    from lgd.results import provenance

    # What each loader gets for itself when a model needs the rest.
    torch.set_num_threads(1)
    dataset = resolve(source, shapes=ShapesSpec(), split=val_split_of(data))
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
