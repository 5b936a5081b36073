"""The command ``python -m lgd.data``: look at a data set before training on it, join several into one.

python -m lgd.data check voc:DIR
python -m lgd.data check coco-json:DIR --draw 8 --output images
python -m lgd.data check --train-json train.json --val-json val.json --images images
python -m lgd.data join voc:DIR yolo:DIR --output DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from lgd.cli import Parser, examples, exit_status
    from lgd.config.data_source import SCHEMES, add_data_arguments, source_of, split_overrides
    from lgd.config.experiment import Experiment
    from lgd.errors import InputError

PROG = "python -m lgd.data"

JOIN = "join coco-json:DIR yolo:DIR --output data/both"

EXAMPLES = (
    "check voc:DIR",
    "check coco-json:DIR --draw 8 --output images",
    "check --train-json train.json --val-json val.json --images images",
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 all of the data can be used, 1 some is dropped, 2 none can be used or a wrong option, 130
    interrupted (Ctrl-C or SIGTERM)."""
    return exit_status(lambda: _run(parser(prog).parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    return _join(options) if options.command == "join" else run(options)


def parser(prog: str = PROG) -> Parser:
    built = Parser(prog=prog, description="Look at data, and join it.", epilog=examples(prog, *EXAMPLES, JOIN))
    commands = built.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    check = commands.add_parser(
        "check",
        help="read it as training would and list every problem",
        description=(
            "Read a data set as training would, decode every image, and list what is wrong with it.\n"
            "Exit status: 0 all of it can be used, 1 some is dropped, 2 none can be used."
        ),
        epilog=examples(prog, *EXAMPLES),
    )
    add_arguments(check)
    join = commands.add_parser(
        "join",
        help="write several data sets as one",
        description=(
            "Write several data sets as one directory in COCO layout, with links to the images: train from\n"
            "train, val from val. An image that two of them have, byte for byte, is taken once, and not trained\n"
            "on if another of them has it in val."
        ),
        epilog=examples(prog, JOIN),
    )
    join.add_argument("sources", nargs="+", metavar="DATASET", help=f"two or more of {', '.join(SCHEMES)}")
    join.add_argument("--output", required=True, metavar="DIR", help="a new directory")
    join.add_argument(
        "--any-classes",
        action="store_true",
        help="also where classes differ: what a data set shows and does not label is then trained on as background",
    )
    join.add_argument(
        "--val-fraction",
        type=float,
        metavar="X",
        help="part of train to validate on, of data without validation images",
    )
    join.add_argument("--split-seed", type=int, metavar="N", help="which images these are (default: 0)")
    join.add_argument("--verbose", action="store_true", help="list every image that is left out, not the first ten")
    join.set_defaults(resplit=False)
    return built


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``check``."""
    parser.add_argument("source", nargs="?", metavar="DATASET", help=", ".join(SCHEMES))
    add_data_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="list every problem, not the first ten of each kind")
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="write N images a split, with boxes and masks")
    parser.add_argument(
        "--output", type=Path, default=Path("check"), metavar="DIR", help="where the images go (default: check)"
    )


def run(options: argparse.Namespace) -> int:
    """Check, and return the exit status. Raises InputError, one line, where nothing can be used."""
    source = source_of(options, options.source)
    if source is None:
        raise InputError(f"name a DATASET ({', '.join(SCHEMES)}) or --train-json, --val-json and --images")
    settings = Experiment().override(split_overrides(options)).data
    if options.draw < 0:
        raise InputError(f"--draw {options.draw}: a number from 0")
    # Here, not at the top: help and wrong options need none of it.
    from lgd.data.check import LISTED, list_problems, report
    from lgd.data.dataset import check_objects
    from lgd.data.layout import Problem
    from lgd.data.shapes import ShapesSpec
    from lgd.data.sources import find_dataset
    from lgd.data.split import val_split_of

    problems: list[Problem] = []
    listed = None if options.verbose else LISTED
    try:
        dataset = find_dataset(source, shapes=ShapesSpec(), problems=problems, split=val_split_of(settings))
    except InputError:
        # What led to it, such as the images that are all missing.
        _print(list_problems(problems, listed))
        raise
    _print(report(dataset, problems, listed))
    if options.draw:
        # It loads torch, which the rest of the command does not need.
        from lgd.data.draw import draw

        written = draw(dataset, options.draw, options.output)
        _print(["", f"{len(written)} images in {options.output}"])
    check_objects(dataset)
    return int(any(x.outcome == "dropped" for x in problems))


def _join(options: argparse.Namespace) -> int:
    settings = Experiment().override(split_overrides(options)).data
    # Here, not at the top: help and wrong options need none of it.
    from lgd.data.check import LISTED
    from lgd.data.join import join
    from lgd.data.split import val_split_of
    from lgd.storage.outputs import is_url

    if is_url(options.output):
        raise InputError(f"--output {options.output}: a directory of this machine is needed, for links to the images")
    joined = join(options.sources, Path(options.output), any_classes=options.any_classes, split=val_split_of(settings))
    shown = joined.left_out if options.verbose else joined.left_out[:LISTED]
    _print(shown)
    if len(shown) < len(joined.left_out):
        _print([f"left out: {len(joined.left_out) - len(shown)} more: --verbose lists all"])
    for split, counts in joined.counts.items():
        of = ", ".join(f"{x.images} of {name}" for name, x in counts.items())
        images, objects = (sum(getattr(x, what) for x in counts.values()) for what in ("images", "objects"))
        _print([f"{split}: {images} images ({of}), {objects} objects"])
    _print([f"{len(joined.class_names)} classes; train on it with --data coco-json:{joined.directory}"])
    return 0


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        # A file may hold half characters, which no terminal can show.
        print(line.encode(errors="backslashreplace").decode())


if __name__ == "__main__":
    sys.exit(main())
