"""How much larger batches are than their images, since a batch is padded to its widest and highest image.

Batches are drawn at random, of landscape or of portrait images alone, as detectron2 groups them, and each image is
resized as in training. It is what benchmarks/timer_spec.py takes the size of synthetic images from.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from lgd.cli import Parser, examples, exit_status
    from lgd.errors import InputError
    from lgd.files import write_text

PROG = "benchmarks/padding.py"

DESCRIPTION = "How much larger batches are than their images, which are padded to the widest (docs/performance.md)."

EXAMPLES = ("coco-json:DIR --batch 16 --output benchmarks/results/NAME.csv",)

Sizes = Sequence[tuple[float, float]]
"""Height and width of each image, pixels."""


def resized(sizes: Sizes, side: int, max_size: int) -> Sizes:
    """The sizes after resizing the shorter side to ``side``, the longer one to ``max_size`` at most."""
    found = []
    for height, width in sizes:
        scale = min(side / min(height, width), max_size / max(height, width))
        found.append((height * scale, width * scale))
    return found


def measure(sizes: Sizes, batch: int, draws: int, seed: int = 0) -> dict[str, Any]:
    """The longer side of padded batches to their shorter one, the median, and their pixels over their images'."""
    import numpy as np

    generator = np.random.default_rng(seed)
    all_BHW = np.array(sizes, float)
    upright = all_BHW[:, 0] > all_BHW[:, 1]
    groups = [all_BHW[upright], all_BHW[~upright]]
    aspects, pixels = [], []
    for is_upright in generator.random(draws) < upright.mean():
        images = generator.choice(groups[0 if is_upright else 1], batch)
        height, width = images.max(axis=0)
        aspects.append(max(height, width) / min(height, width))
        pixels.append(height * width * batch / images.prod(axis=1).sum())
    return {"aspect": round(statistics.median(aspects), 3), "pixels": round(statistics.fmean(pixels), 3)}


def run(options: argparse.Namespace) -> int:
    for name in ("batch", "side", "max_size", "draws"):
        if (value := getattr(options, name)) < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least 1")
    # Here, not at the top: --help takes a fraction of a second.
    import json

    from lgd.data.catalog import resolve
    from lgd.data.shapes import ShapesSpec
    from lgd.results import provenance

    dataset = resolve(options.source, shapes=ShapesSpec())
    images = [
        image
        for path in dict.fromkeys((dataset.layout.train_json, dataset.layout.val_json))
        for image in json.loads(path.read_bytes())["images"]
    ]
    sizes = resized([(x["height"], x["width"]) for x in images], options.side, options.max_size)
    row = {
        "data": dataset.source.rsplit("/", 1)[-1], "images": len(images), "batch": options.batch, "side": options.side,
        "max_size": options.max_size, "draws": options.draws, **measure(sizes, options.batch, options.draws),
        "git_commit": provenance.git_commit(),
    }  # fmt: skip
    print(
        f"{row['images']} images, batches of {row['batch']}: longer side to shorter one {row['aspect']:.3f} (median),"
        f" {row['pixels']:.2f} times the images' own pixels (mean)"
    )
    if options.output:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
        write_text(options.output, text.getvalue())
    return 0


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 measured, 2 wrong input, 130 interrupted."""
    return exit_status(lambda: run(parser(prog).parse_args(arguments)))


def parser(prog: str = PROG) -> Parser:
    found = Parser(prog=prog, description=DESCRIPTION, epilog=examples(prog, *EXAMPLES))
    add_arguments(found)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="DATASET", help="as --data takes it, such as coco-json:DIR")
    add("--batch", type=int, default=16, metavar="N", help="images (default: 16)")
    add("--side", type=int, default=800, metavar="N", help="shorter side, pixels (default: 800)")
    add("--max-size", type=int, default=1333, metavar="N", help="longest longer side, pixels (default: 1333)")
    add("--draws", type=int, default=20_000, metavar="N", help="batches to draw (default: 20000)")
    add("--output", type=Path, metavar="FILE.csv", help="write the row there, too")


if __name__ == "__main__":
    sys.exit(main())
