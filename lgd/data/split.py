"""A validation split for data that has none, and a part of the training images to train on: both chosen by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from lgd.config.experiment import Data
from lgd.data.annotation_values import is_id
from lgd.data.layout import Problem, RawSplit
from lgd.errors import InputError

T = TypeVar("T")

__all__ = [
    "HINT",
    "ValSplit",
    "names_of_val",
    "part_of",
    "part_size",
    "split_raw",
    "takes_val_from_train",
    "val_split_of",
]

HINT = "--val-fraction 0.2 takes a fifth of the training images"
"""End of the message for data without a validation split."""


class ValSplit(NamedTuple):
    """The settings ``data.val_fraction``, ``data.split_seed`` and ``data.resplit``."""

    fraction: float
    """Fraction of the training images, above 0 and below 1."""
    seed: int = 0
    replace: bool = False
    """Also where the data has a validation split, which is left alone then."""


def val_split_of(settings: Data) -> ValSplit | None:
    """None where the data's own validation split is used."""
    if settings.val_fraction == 0:
        return None
    return ValSplit(settings.val_fraction, settings.split_seed, settings.resplit)


def takes_val_from_train(where: object, has_val: bool, split: ValSplit | None) -> bool:
    """Whether the validation images are a part of the training images.

    Raises InputError, one line that names ``where``, for a fraction where there is a validation split.
    """
    if split is None:
        return False
    if has_val and not split.replace:
        raise InputError(
            f"{where} has a validation split: leave out --val-fraction, or add --resplit to validate on a part of the"
            " training images and leave that split alone"
        )
    return True


def names_of_val(names: Iterable[str], split: ValSplit) -> set[str]:
    """The names of the validation images: those of the lowest hashes, at least one, and not all.

    The order of ``names`` does not matter, and a name's hash does not depend on the other names.
    """
    ordered = sorted(set(names), key=lambda name: _hash(name, split.seed))
    count = round(len(ordered) * split.fraction)
    return set(ordered[: min(max(count, 1), max(len(ordered) - 1, 0))])


def part_of(images: Sequence[T], fraction: float, identity: Callable[[T], object]) -> list[T]:
    """``round(fraction * N)`` of N images, one at least, in their order: those with the lowest hashes of ``identity``.

    Those of a smaller fraction are among those of a larger one.
    """
    if fraction == 1:
        return list(images)
    names = [str(identity(x)) for x in images]
    ordered = sorted(range(len(images)), key=lambda i: _hash(names[i], 0))
    return [images[i] for i in sorted(ordered[: part_size(len(images), fraction)])]


def part_size(images: int, fraction: float) -> int:
    """How many of ``images`` :func:`part_of` takes; 0 of none."""
    return min(max(round(images * fraction), 1), images)


def _hash(name: str, seed: int) -> tuple[bytes, str]:
    text = f"{seed}\0{name}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest(), name


def split_raw(raw: RawSplit, split: ValSplit) -> tuple[RawSplit, RawSplit]:
    """Train and val of one list of images. Entries without a usable image go to train, where they are reported."""
    problems: list[Problem] = []
    images = _located(raw, "image", raw.images, problems)
    annotations = _located(raw, "annotation", raw.annotations, problems)
    chosen = names_of_val((x["file_name"] for x in images if isinstance(x.get("file_name"), str)), split)

    def in_val(image: dict[str, Any]) -> bool:
        name = image.get("file_name")
        return isinstance(name, str) and name in chosen

    ids = {x["id"] for x in images if is_id(x.get("id")) and in_val(x)}
    # An id that is used twice means the first image.
    ids -= {x["id"] for x in images if is_id(x.get("id")) and not in_val(x)}

    def of_val(annotation: dict[str, Any]) -> bool:
        number = annotation.get("image_id")
        return is_id(number) and number in ids

    return (
        replace(
            raw,
            images=[x for x in images if not in_val(x)],
            annotations=[x for x in annotations if not of_val(x)],
            problems=raw.problems + problems,
            is_whole=False,
        ),
        replace(
            raw,
            images=[x for x in images if in_val(x)],
            annotations=[x for x in annotations if of_val(x)],
            problems=[],
            is_whole=False,
        ),
    )


def _located(raw: RawSplit, kind: str, entries: list[Any], problems: list[Problem]) -> list[dict[str, Any]]:
    """The entries, each with where it was read, which its position no longer tells after the split."""
    found = []
    for position, value in enumerate(entries):
        if not isinstance(value, dict):
            problems.append(Problem("dropped", "broken entry", f"{raw.path}: {kind}s[{position}]", "is not an object"))
        elif "_where" in value or is_id(value.get("id")):
            found.append(value)
        else:
            found.append({**value, "_where": f"{raw.path}: {kind}s[{position}]"})
    return found
