"""Which files have the same bytes, without reading those that cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

__all__ = ["shared_digests"]


def shared_digests(files: Iterable[tuple[T, Hashable, Path]]) -> Iterator[tuple[T, bytes]]:
    """Key and digest of the bytes of each file, in their order, but for those that no other group can have.

    files: key, group and path of each. Read are only those whose size a file of another group has as well.
    """
    sized = [(key, group, path, path.stat().st_size) for key, group, path in files]
    groups: dict[int, set[Hashable]] = {}
    for _, group, _, size in sized:
        groups.setdefault(size, set()).add(group)
    for key, _, path, size in sized:
        if len(groups[size]) > 1:
            with path.open("rb") as file:
                yield key, hashlib.file_digest(file, "sha256").digest()
