"""The command ``python -m lgd.data``: look at a data set before training on it.

python -m lgd.data check voc:DIR
python -m lgd.data check coco-json:DIR --draw 8 --output pictures
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lgd.cli import Parser, answer
from lgd.config.data_source import SCHEMES
from lgd.data.catalog import resolve
from lgd.data.check import draw, report
from lgd.data.dataset import check_objects
from lgd.data.layout import Problem
from lgd.data.shapes import ShapesSpec
from lgd.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all of the data can be used, 1 some is dropped, 2 none can be used or a wrong option."""
    return answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m lgd.data", description="Look at a data set.")
    check = parser.add_subparsers(dest="command", required=True).add_parser(
        "check", help="read it as training would and list every problem"
    )
    check.add_argument("source", metavar="DATASET", help=", ".join(SCHEMES))
    check.add_argument(
        "--draw", type=int, default=0, metavar="N", help="write N pictures a split, with boxes and masks"
    )
    check.add_argument(
        "--output", type=Path, default=Path("check"), metavar="DIR", help="where the pictures go (default: check)"
    )
    options = parser.parse_args(arguments)
    if options.draw < 0:
        raise InputError(f"--draw {options.draw}: a number from 0")
    problems: list[Problem] = []
    try:
        dataset = resolve(options.source, shapes=ShapesSpec(), problems=problems)
    except InputError:
        # What led to it, such as the images that are all missing.
        _print(map(str, problems))
        raise
    _print(report(dataset, problems))
    if options.draw:
        written = draw(dataset, options.draw, options.output)
        _print(["", f"{len(written)} pictures in {options.output}"])
    check_objects(dataset)
    if dataset.counts.val.objects == 0:
        raise InputError(f"{dataset.layout.val_json} has no object to score on: AP would not be defined")
    return int(any(x.outcome == "dropped" for x in problems))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        # A file may hold half characters, which no terminal can show.
        print(line.encode(errors="backslashreplace").decode())


if __name__ == "__main__":
    sys.exit(main())
