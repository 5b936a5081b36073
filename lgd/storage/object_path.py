"""Files of data sets by URL: of :class:`pathlib.Path` what the readers of data sets use, for objects in a store.

What is there is listed once for each directory, and what an object is is known from that, so asking for it costs no
request. Annotations are fetched into the cache whole; images are read through a cache that is bounded
(lgd/storage/file_cache.py). Both are kept by URL and version, so an object that changes is fetched again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import posixpath
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar, cast

from filelock import FileLock

from lgd.cache import cache_root
from lgd.errors import InputError
from lgd.files import remove_temporary_files
from lgd.storage.file_cache import image_cache
from lgd.storage.outputs import is_url
from lgd.storage.store import Entry, StorageError, Store

T = TypeVar("T")

FETCHED = "fetched-"
"""Begins the directories in the cache with annotation files of a store."""

KNOWN_FOR = 60.0
"""Seconds for which a data set that is read again in one process is taken to be what it was."""

HEAD, TAIL = 32 * 1024, 16
"""Bytes at an image's start and end that are read to know its size, and whether it is whole."""

_known: dict[tuple[str, str], tuple[float, Any]] = {}
"""What this process has asked for, and when: listings and entries, by kind and URL."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or a directory of objects. May be pickled; in another process it is asked for anew."""

    url: str

    @classmethod
    def of(cls, url: str) -> Self:
        """A URL as it was put together, with ``..`` and double slashes in it perhaps."""
        return cls(_normal(url))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectPath:
        if name.startswith("/"):
            # Not below this directory, nor anywhere else in the store: a name that no object has.
            return ObjectPath(f"{self.url}/{name}")
        return ObjectPath(_normal(f"{self.url}/{name}"))

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.url.rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def relative_to(self, other: ObjectPath) -> str:
        """Raises ValueError where this is not below ``other``."""
        if not self.url.startswith(f"{other.url}/"):
            raise ValueError(f"{self.url} is not below {other.url}")
        return self.url[len(other.url) + 1 :]

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return self.find() is not None

    def is_dir(self) -> bool:
        return self._stat() == "directory"

    def listed(self) -> dict[str, Entry]:
        """The objects below, by their names relative to this."""
        return _ask("listing", self.url, lambda: Store(self.url).entries())

    def glob(self, pattern: str) -> list[ObjectPath]:
        """The objects in this directory whose names match."""
        return [self / name for name in sorted(self.listed()) if "/" not in name and fnmatchcase(name, pattern)]

    def entry(self) -> Entry:
        """Version and size. Raises FileNotFoundError."""
        found = self.find()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.url)
        return found

    def read_bytes(self) -> bytes:
        """The content, through the cache of images. Raises FileNotFoundError; StorageError where its size changed."""
        entry, cache = self.entry(), image_cache()
        data = cache.get(self.key(entry), entry.size)
        if data is None:
            data = Store(self.url).read("")
            if data is None:
                raise FileNotFoundError(errno.ENOENT, "no such object", self.url)
            if len(data) != entry.size:
                raise StorageError(f"{self.url}: has {len(data)} bytes, and had {entry.size} before: start again")
            cache.put(self.key(entry), data)
        return data

    def open(self, mode: str = "rb") -> BinaryIO:
        """For reading parts of it: its head and its end are fetched alone, anything else with the whole."""
        assert mode == "rb"
        return cast(BinaryIO, io.BufferedReader(_Parts(self)))

    def fetched(self) -> Path:
        """A file in the cache with this object's content. Raises FileNotFoundError."""
        entry = self.entry()
        path = cache_root() / "data" / f"{FETCHED}{self.key(entry)[:16]}" / self.name

        def is_there() -> bool:
            return path.is_file() and path.stat().st_size == entry.size

        if not is_there():
            _make_directory(path.parent)
            with FileLock(path.parent / "lock"):
                remove_temporary_files(path.parent)
                if not is_there() and not Store(self.url).download("", path, entry.size):
                    raise FileNotFoundError(errno.ENOENT, "no such object", self.url)
        return path

    def key(self, entry: Entry) -> str:
        """The name of this version of the object in caches."""
        return hashlib.sha256(f"{self.url}\0{entry.version}".encode(errors="surrogatepass")).hexdigest()

    def find(self) -> Entry | None:
        """Version and size; None where there is no such object. No request where its directory was listed."""
        parent = self.url
        while (parent := parent.rpartition("/")[0]).partition("://")[2]:
            if ("listing", parent) in _known:
                found: Entry | None = _known["listing", parent][1].get(self.url[len(parent) + 1 :])
                return found
        info = self._stat()
        return info if isinstance(info, Entry) else None

    def _stat(self) -> Entry | str | None:
        return _ask("entry", self.url, lambda: Store(self.url).stat())


AnyPath = Path | ObjectPath


def data_path(text: str | Path) -> AnyPath:
    """A place of data as it was given: an absolute path, or a URL. Raises InputError, one line, for a URL that is none.

    Not for names relative to a directory: a Path has lost a slash of its URL.
    """
    if isinstance(text, Path) or not is_url(text):
        return Path(text).expanduser().absolute()
    rest = text.partition("://")[2]
    if not rest.strip("/"):
        raise InputError(f"{text}: a bucket and a name in it, such as s3://bucket/data")
    if any(x in text for x in "?#") or "@" in rest.partition("/")[0]:
        # Of the URL its scheme alone: messages go to logs, where nobody looks for a secret.
        scheme = text.partition("://")[0]
        raise InputError(f"{scheme}://...: without options and credentials, which belong into the environment")
    return ObjectPath(_normal(text))


def refresh(path: ObjectPath) -> None:
    """Forget what is known of ``path`` and below from more than KNOWN_FOR seconds ago."""
    now = time.monotonic()
    for key, (asked, _) in list(_known.items()):
        if f"{key[1]}/".startswith(f"{path.url}/") and now - asked > KNOWN_FOR:
            del _known[key]


def local_file(path: AnyPath) -> Path:
    """The file itself, or the fetched one. Raises OSError."""
    return path if isinstance(path, Path) else path.fetched()


def file_size(path: AnyPath) -> int:
    """Bytes. Raises FileNotFoundError."""
    return path.stat().st_size if isinstance(path, Path) else path.entry().size


def file_state(path: AnyPath) -> tuple[str, int | str, int]:
    """What changes with a file, or with what is in a directory. Raises FileNotFoundError."""
    if isinstance(path, Path):
        status = path.stat()
        return str(path), status.st_mtime_ns, status.st_size
    if not path.is_dir():
        return (path.url, *path.entry())
    listed = sorted(path.listed().items())
    return path.url, hashlib.sha256(repr(listed).encode(errors="surrogatepass")).hexdigest(), len(listed)


# ----------------------------------------------------------------------------------------------------------


class _Parts(io.RawIOBase):
    """A file that fetches the first HEAD and the last TAIL bytes of an object alone; all of it for anything else."""

    def __init__(self, path: ObjectPath) -> None:
        self._path, self._size, self._at = path, path.entry().size, 0
        # Where both are most of it, one request is less.
        self._whole = path.read_bytes() if self._size <= 2 * HEAD else None
        self._head: bytes | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._read(self._at, min(self._at + len(buffer), self._size))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def _read(self, start: int, end: int) -> bytes:
        """Fewer bytes where the head ends before."""
        if start >= end:
            return b""
        if self._whole is None and start < HEAD:
            if self._head is None:
                self._head = Store(self._path.url).read_part("", 0, HEAD)
            return self._head[start:end]
        if self._whole is None and start >= self._size - TAIL:
            return Store(self._path.url).read_part("", start, end)
        if self._whole is None:
            self._whole = self._path.read_bytes()
        return self._whole[start:end]


def _ask(kind: str, url: str, request: Callable[[], T]) -> T:
    if (kind, url) not in _known:
        _known[kind, url] = time.monotonic(), request()
    found: T = _known[kind, url][1]
    return found


def _normal(url: str) -> str:
    """Without ``.``, ``..`` and double slashes, and without a slash at its end."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return f"file://{posixpath.abspath(rest)}"
    return f"{scheme}://{posixpath.normpath(f'/{rest}')[1:].lstrip('/')}"


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the cache {path} ({error.strerror}): set LGD_CACHE") from error
