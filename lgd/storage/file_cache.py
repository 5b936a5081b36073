"""A directory of files up to a number of bytes, shared by the processes of this machine; the least recently used go.

What is in it can be had again, so losing any of it costs time alone: a file that is gone, cut off or cannot be written
is as one that was never there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from lgd import environment
from lgd.cache import cache_root
from lgd.files import free_space

SIZE_VARIABLE = "LGD_IMAGE_CACHE_GB"
"""Environment variable: 10^9 bytes of images from object storage that are kept on this machine (default: SIZE)."""

SIZE = 50.0

KEPT_FREE = 2 * 2**30
"""Bytes of the disk that are left to others: checkpoints and results are more important."""

KEPT = 0.9
"""Part of the limit that is left when files have to go: looking for the oldest takes a second for many of them."""

BLOCK = 4096
"""A file takes up whole blocks of a disk."""

TEMPORARY, USED, LOCK = "new", "used", "lock"
"""Names in the directory: of the file that is being written, of the number of bytes, and of the lock on both."""


def image_cache() -> FileCache:
    """This machine's cache of images. Raises InputError, one line, where SIZE_VARIABLE is no size."""
    return FileCache(cache_root() / "images", int(environment.number(SIZE_VARIABLE, SIZE, "gigabytes") * 1e9))


class _File(NamedTuple):
    used: float
    """When it was last read or written."""
    bytes: int
    path: str


@dataclass(frozen=True)
class FileCache:
    """Files in ``directory``, ``most`` bytes of them, and no more than leaves KEPT_FREE on the disk."""

    directory: Path
    most: int

    def get(self, key: str, size: int) -> bytes | None:
        """The content of ``size`` bytes that was put there under ``key``; None where there is none."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            if len(data) != size:
                # The machine went down before it was on the disk.
                path.unlink(missing_ok=True)
                return None
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep ``data`` where there is room for it. A reader sees all of it or nothing."""
        path, temporary = self._path(key), self.directory / TEMPORARY
        # On a full or read-only disk it is read from where it came from the next time, too.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.directory / LOCK):
                if self._make_room(_on_disk(len(data))):
                    # One name: what a process leaves that is killed here, the next one writes over.
                    temporary.write_bytes(data)
                    temporary.replace(path)

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / key

    # ---------------------------------------------------------------------------------------------- its size

    def _make_room(self, size: int) -> bool:
        """Count ``size`` bytes as used, and remove files where there is no room; False where there is none even so.

        The lock is held.
        """
        used = self._used()
        if used is None or used + size > self._limit(used):
            used = self._remove_oldest(size)
            if used + size > self._limit(used):
                return False
        (self.directory / USED).write_text(str(used + size))
        return True

    def _limit(self, used: int) -> int:
        return min(self.most, used + free_space(self.directory) - KEPT_FREE)

    def _used(self) -> int | None:
        """None where nobody has counted, or was killed at it."""
        try:
            return int((self.directory / USED).read_text())
        except (OSError, ValueError):
            return None

    def _remove_oldest(self, size: int) -> int:
        """Make room for ``size`` bytes; the number of bytes that are left. Counts anew what is there."""
        files = sorted(self._files())
        used = sum(x.bytes for x in files)
        limit = self._limit(used)
        if size <= limit < used + size:
            for file in files:
                if used + size <= KEPT * limit:
                    break
                Path(file.path).unlink(missing_ok=True)
                used -= file.bytes
        return used

    def _files(self) -> Iterator[_File]:
        for part in os.scandir(self.directory):
            if len(part.name) == 2 and part.is_dir():
                for entry in os.scandir(part.path):
                    # One that was cut off is removed without the lock.
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        yield _File(status.st_mtime, _on_disk(status.st_size), entry.path)


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
