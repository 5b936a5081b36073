"""The types that describe a data set's splits: as they were read, their problems, and where the result lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lgd.errors import InputError
from lgd.files import read_file
from lgd.storage.object_path import AnyPath, local_file
from lgd.storage.store import StorageError

__all__ = [
    "CLEANED",
    "CocoLayout",
    "Counts",
    "Outcome",
    "Problem",
    "RawSplit",
    "SplitCounts",
    "dropped_note",
    "read_bytes",
]

CLEANED = "cleaned-"
"""Begins the directories in the cache with COCO files that were written from other layouts, or without faults."""


class SplitCounts(NamedTuple):
    """Size of a split."""

    images: int
    objects: int
    """Without crowds."""
    crowds: int
    empty: int
    """Images that show no object (crowds do not count)."""

    @property
    def mean_objects(self) -> float:
        """Objects an image, over all images of the split."""
        return self.objects / self.images


class Counts(NamedTuple):
    """Sizes of both splits."""

    train: SplitCounts
    val: SplitCounts


@dataclass(frozen=True)
class CocoLayout:
    """Where the COCO files of two splits lie and what is in them; all paths are absolute."""

    root: AnyPath
    """Directory of the data."""
    train_json: Path
    """On this machine, as ``val_json``; images may be in object storage."""
    train_images: AnyPath
    val_json: Path
    val_images: AnyPath
    class_names: tuple[str, ...]
    """By rising category id, the order of detectron2's contiguous labels."""
    category_ids: tuple[int, ...]
    """Category ids of these classes in the annotation files."""
    counts: Counts
    fingerprint: str
    """Hex digest of the annotation files' bytes and of the images' names and sizes; the directory does not matter."""
    sources: tuple[str, str]
    """The files of train and of val that messages name: those that were read, wherever the result lies."""
    dropped: tuple[str, str]
    """Descriptions of the entries dropped from train and from val; empty where none was."""
    first_dropped: tuple[str, str]
    """Where the first of them was, and what was wrong with it."""


Outcome = Literal["dropped", "fixed", "noted"]
"""An entry that is only noted stays as it is."""


class Problem(NamedTuple):
    """Something about a data set."""

    outcome: Outcome
    """What became of the entry."""
    kind: str
    where: str
    """File, and entry in it."""
    what: str

    def __str__(self) -> str:
        # A name in the file may hold line breaks.
        return " ".join(f"{self.outcome:<8}{self.kind:<20}{self.where}: {self.what}".splitlines())

    @property
    def short(self) -> str:
        """Where and what, for the end of a message."""
        text = " ".join(f"{self.where}: {self.what}".split())
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


LONGEST = 300
"""Characters of a problem at the end of a message: a file may hold anything."""


def dropped_note(dropped: str, first: str) -> str:
    """The end of a message about a split that has too little left; "" where nothing was dropped."""
    return f"; dropped: {dropped}; the first: {first}" if dropped else ""


@dataclass
class RawSplit:
    """A split in COCO's terms, its entries as they were read. An entry may say in "_where" where it was read."""

    path: AnyPath
    """The file that messages name; the COCO file itself where ``is_coco``."""
    folder: AnyPath
    """The directory of the images."""
    images: list[Any]
    annotations: list[Any]
    categories: list[tuple[int, str]]
    """Ids and names, by rising id."""
    problems: list[Problem] = field(default_factory=list)
    """Problems of entries that could not be converted to COCO's format."""
    is_coco: bool = False
    is_whole: bool = True
    """False for a part of what ``path`` has (lgd/data/split.py), and where categories have other names in it."""
    is_normalised: bool = False
    """Whether boxes, areas and polygons are in parts of their image's width and height."""


def read_bytes(path: AnyPath) -> bytes:
    """Raises InputError, one line."""
    try:
        return read_file(local_file(path))
    except StorageError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
