"""The names of data sets, as ``--data`` and ``data.source`` take them, and options that name one by its files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
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

COCO_2017 = "coco-json:datasets/coco"
"""Where the paper's trainings look for MS-COCO 2017."""

COCO_2017_COUNTS = {
    "classes": 80,
    "train_images": 118_287,
    "train_objects": 849_949,
    "val_images": 5_000,
    "val_objects": 36_335,
}
"""What a record's ``data`` says of MS-COCO 2017; objects without crowds, before those are dropped that have no area."""

DROPPED_OBJECTS = 20
"""At most, of either split of MS-COCO 2017."""

DATASETS_VARIABLE = "DETECTRON2_DATASETS"
"""detectron2's: the directory that holds ``coco``, ``VOC2007`` and ``VOC2012``."""

NO_COCO = (
    f"MS-COCO is looked for in datasets/coco and ${DATASETS_VARIABLE}/coco: link it there (ln -s DIR datasets/coco),"
    " set that variable, or say --data coco-json:DIR (docs/tables.md)"
)


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


def located(source: str) -> str:
    """``source``; for the paper's MS-COCO "coco", where only $DETECTRON2_DATASETS/coco holds it on this machine."""
    elsewhere = os.environ.get(DATASETS_VARIABLE)
    if source != COCO_2017 or not elsewhere or Path(source.partition(":")[2]).is_dir():
        return source
    return "coco" if (Path(elsewhere).expanduser() / "coco").is_dir() else source


def absolute_source(source: str) -> str:
    """A source as :func:`located`, its paths made absolute, so that it means the same wherever a run goes on.

    Links are not followed: they are named after what they stand for. A URL stays. Raises InputError, one line, for
    ``coco-files:`` with other than two or three paths.
    """
    return _with_paths(located(source), _absolute)


def followed(source: str) -> str:
    """A source as :func:`absolute_source`, with links followed: as sweeps of older versions have it."""
    return _with_paths(absolute_source(source), Path.resolve)


def _with_paths(source: str, change: Callable[[Path], Path]) -> str:
    """A source with its local paths changed."""
    scheme, colon, path = source.partition(":")
    if not colon or not path or (scheme != COCO_FILES and is_url(path)):
        return source
    paths = parse_coco_files(path) if scheme == COCO_FILES else (Path(path).expanduser(),)
    return f"{scheme}:{','.join(str(change(x) if isinstance(x, Path) else x) for x in paths if x)}"


def _absolute(path: Path) -> Path:
    # What lies above a link is known to the file system alone.
    return path.resolve() if ".." in path.parts else path.absolute()


def portable_source(source: str) -> str:
    """A source with the last two parts of its paths alone, so that records of several machines compare.

    "coco" is the paper's MS-COCO under another name.
    """
    if source == "coco":
        return COCO_2017
    scheme, colon, rest = source.partition(":")
    paths = rest.split(",") if scheme == COCO_FILES else [rest]
    return f"{scheme}:{','.join('/'.join(Path(x).parts[-2:]) for x in paths)}" if colon else scheme


def is_coco_2017(source: str, data: Mapping[str, object]) -> bool:
    """Whether a record's data are MS-COCO 2017: by what the data set says of itself, else by the source's name.

    data: its counts (:meth:`lgd.data.dataset.DataSet.summary`), where they are known.
    """
    counts = {key: value for key in COCO_2017_COUNTS if isinstance(value := data.get(key), int)}
    if len(counts) < len(COCO_2017_COUNTS):
        return portable_source(source) == COCO_2017
    return all(
        0 <= COCO_2017_COUNTS[key] - value <= (DROPPED_OBJECTS if "objects" in key else 0)
        for key, value in counts.items()
    )


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
