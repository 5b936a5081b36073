"""The names of data sets, as ``--data`` and ``data.source`` take them, and options that name one by its files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from lgd.errors import InputError
from lgd.storage.object_path import AnyPath, data_path
from lgd.storage.outputs import is_url

SCHEMES = (
    "shapes",
    "coco",
    "voc0712",
    "coco-json:DIR",
    "coco-files:TRAIN.json,VAL.json,IMAGES",
    "voc:DIR",
    "yolo:DIR",
    "crowdhuman:DIR",
)

COCO_FILES = "coco-files"


class CocoFiles(NamedTuple):
    """What ``coco-files:`` names: the annotation file of each split, and a directory of the images of both."""

    train_json: AnyPath
    val_json: AnyPath | None
    """None where the validation images are a part of the training images (``data.val_fraction``)."""
    images: AnyPath


def parse_coco_files(rest: str) -> CocoFiles:
    """``rest``: what follows ``coco-files:``. Raises InputError, one line, for other than three paths, or two."""
    parts = rest.split(",")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(
            f"data {COCO_FILES}:{rest}: three paths are needed, {COCO_FILES}:TRAIN.json,VAL.json,IMAGES, or two,"
            " TRAIN.json,IMAGES, with --val-fraction"
        )
    train, *val, images = (data_path(x) for x in parts)
    return CocoFiles(train, val[0] if val else None, images)


def absolute_source(source: str) -> str:
    """A source with its paths made absolute, so that it means the same wherever a run goes on. A URL stays.

    Raises InputError, one line, for ``coco-files:`` with other than two or three paths.
    """
    scheme, colon, path = source.partition(":")
    if not colon or not path or (scheme != COCO_FILES and is_url(path)):
        return source
    paths = parse_coco_files(path) if scheme == COCO_FILES else (Path(path).expanduser(),)
    return f"{scheme}:{','.join(str(x.resolve() if isinstance(x, Path) else x) for x in paths if x)}"


def portable_source(source: str) -> str:
    """A source with the last two parts of its paths alone, so that records of several machines compare."""
    scheme, colon, rest = source.partition(":")
    paths = rest.split(",") if scheme == COCO_FILES else [rest]
    return f"{scheme}:{','.join('/'.join(Path(x).parts[-2:]) for x in paths)}" if colon else scheme


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name a data set by its files (:func:`source_of`) and that split it (:func:`split_overrides`)."""
    group = parser.add_argument_group("data in COCO format by its files (all three together); the validation split")
    group.add_argument("--train-json", metavar="FILE", help="annotations to train on")
    group.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    group.add_argument("--images", metavar="DIR", help="the images of both, or of both in subdirectories")
    group.add_argument("--val-fraction", type=float, metavar="X", help="part of train to validate on, e.g. 0.2")
    group.add_argument("--split-seed", type=int, metavar="N", help="which images these are (default: 0)")
    group.add_argument("--resplit", action="store_true", help="even where there is a validation split")


def source_of(options: argparse.Namespace, given: str | None) -> str | None:
    """The data set that the options name, or ``given`` (what the command's own option or argument says) without them.

    Without --val-json where --val-fraction makes the validation split. Raises InputError, one line, for one or two of
    the three options, for a path with a comma, and where both name data.
    """
    names = {"--train-json": options.train_json, "--val-json": options.val_json, "--images": options.images}
    if options.val_fraction is not None and options.val_json is None:
        del names["--val-json"]
    missing = [name for name, value in names.items() if value is None]
    if len(missing) == len(names):
        return given
    if missing:
        raise InputError(f"{' and '.join(missing)} missing: --train-json, --val-json and --images go together")
    if given is not None:
        raise InputError(f"data {given} and --train-json, --val-json, --images name two data sets: leave one out")
    for name, value in names.items():
        if "," in value or not value:
            raise InputError(f"{name} {value!r}: a path without commas is needed")
    return f"{COCO_FILES}:{','.join(names.values())}"


def split_overrides(options: argparse.Namespace) -> list[str]:
    """The settings, as key=value, that --val-fraction, --split-seed and --resplit change.

    Raises InputError, one line, for the latter two without a fraction, and for a fraction that is none.
    """
    fraction, seed = options.val_fraction, options.split_seed
    if fraction is None:
        if seed is not None or options.resplit:
            raise InputError(f"{'--resplit' if seed is None else '--split-seed'} needs --val-fraction")
        return []
    if not 0 < fraction < 1:
        raise InputError(f"--val-fraction {fraction}: above 0 and below 1")
    if seed is not None and seed < 0:
        raise InputError(f"--split-seed {seed}: a number from 0")
    seeds = [] if seed is None else [f"data.split_seed={seed}"]
    return [f"data.val_fraction={fraction!r}", *seeds, *(["data.resplit=true"] if options.resplit else [])]
