"""The width and height of a split's images: of those in object storage read side by side, and kept.

Of each the head and the end are read, as of a file; not the whole image, which is read when it is trained on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from lgd.cache import cache_root
from lgd.data.images import Pixels, image_size
from lgd.data.layout import RawSplit
from lgd.files import write_text
from lgd.storage.object_path import ObjectPath
from lgd.storage.store import CONNECTIONS

__all__ = ["DARK", "ImageSizes"]

DARK = 16
"""An image in which no value is as large shows nothing, most likely because its file has 16 bits and uses 12."""

TOLD_FROM = 2000
"""More images than so many take more than some seconds, and that is told."""

Size = tuple[int, int] | str
"""Width and height, or in a few words why the image cannot be read."""

_log = logging.getLogger(__name__)


class ImageSizes:
    """Of the images that ``raw`` names. thorough: decode each of them."""

    def __init__(self, raw: RawSplit, *, thorough: bool) -> None:
        self._folder, self._thorough = raw.folder, thorough
        self.dark: set[str] = set()
        """Names of those of the decoded images that are darker than DARK everywhere."""
        self._read: dict[str, Size] = {}
        if isinstance(raw.folder, ObjectPath):
            names = (x.get("file_name") for x in raw.images if isinstance(x, dict))
            wanted = {x for x in names if isinstance(x, str) and x}
            self._read = _sizes(raw.folder, wanted, self._size, thorough=thorough)

    def of(self, name: str) -> Size:
        """As :func:`lgd.data.images.image_size`. Raises StorageError where a store does not answer."""
        if name in self._read:
            return self._read[name]
        return self._size(name)

    def _size(self, name: str) -> Size:
        return image_size(self._folder / name, thorough=self._thorough, decoded=partial(self._add_dark, name))

    def _add_dark(self, name: str, pixels: Pixels) -> None:
        if pixels.max() < DARK:
            self.dark.add(name)


def _sizes(folder: ObjectPath, names: set[str], read_size: Callable[[str], Size], *, thorough: bool) -> dict[str, Size]:
    listed = folder.listed()
    path = cache_root() / "data" / f"sizes-{hashlib.sha256(folder.url.encode()).hexdigest()[:16]}.json"
    kept: dict[str, list[Any]] = {}
    # A damaged file is as none.
    with suppress(OSError, ValueError, TypeError):
        kept = dict(json.loads(path.read_bytes()))

    def known(name: str) -> Size | None:
        version, size = kept.get(name, ("", ""))
        if thorough or name not in listed or version != listed[name].version:
            return None
        return size if isinstance(size, str) else (size[0], size[1])

    found = {name: size for name in names if (size := known(name)) is not None}
    missing = sorted(names - found.keys())
    if missing:
        level = logging.WARNING if len(missing) > TOLD_FROM else logging.INFO
        what = "decoding" if thorough else "reading the heads of"
        _log.log(level, "%s %d images in %s ...", what, len(missing), folder)
        read = _side_by_side(missing, read_size)
        found |= read
        if not thorough:
            kept |= {name: [listed[name].version, size] for name, size in read.items() if name in listed}
            # Read again the next time where it cannot be kept.
            with suppress(OSError):
                write_text(path, json.dumps(kept))
    return found


def _side_by_side(names: Iterable[str], read_size: Callable[[str], Size]) -> dict[str, Size]:
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="image sizes")
    try:
        jobs = {name: pool.submit(read_size, name) for name in names}
        return {name: job.result() for name, job in jobs.items()}
    finally:
        # Where one has failed, the others are not waited for.
        pool.shutdown(cancel_futures=True)
