"""Objects under a URL (``s3://bucket/prefix``, ``gs://``, ``az://``, ``file://`` and what else fsspec knows).

An object is written whole: a reader sees the old content or the new. What a server answers to no purpose (503, too
slow, a lost connection) is asked again, with growing pauses, for ``patience`` seconds. Credentials come from where the
service's own tools take them: the environment, its configuration files, the machine's role.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

from lgd import environment
from lgd.errors import InputError
from lgd.files import DiskFullError, atomic_write, plain_mode

T = TypeVar("T")

PATIENCE_VARIABLE = "LGD_STORAGE_PATIENCE"
"""Environment variable: seconds for which a request is tried again (default: PATIENCE)."""

PATIENCE = 300.0
LONGEST_PAUSE = 10.0
"""Seconds between two tries, at most."""

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60
"""Seconds that one try of a request to S3 waits."""

CONNECTIONS = 32
"""To S3, of a process."""

REFUSED = (
    errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
"""What a disk answers that will answer the same again."""

PERMANENT = (
    FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError,
    NotImplementedError,
)  # fmt: skip
"""Answers that another try does not change."""

UNREACHABLE = re.compile(
    "HTTPClientError|ConnectionError|ClientError|TimeoutError|ServiceRequestError|ServiceResponseError"
)
"""Names of the classes that a lost or slow connection comes as, where it is no OSError: botocore's, aiohttp's,
requests', azure-core's."""

STATUS = {"HttpError": "code", "HttpResponseError": "status_code"}
"""By the class that an answer of Google's or Azure's comes as: its attribute with the HTTP status."""

_log = logging.getLogger(__name__)


class StorageError(InputError, OSError):
    """A store does not answer, or refuses. The message is one line that names the URL."""


class Entry(NamedTuple):
    """An object: its version, which changes with its content, and its size in bytes."""

    version: str
    size: int


@dataclass(frozen=True)
class Store:
    """What lies under ``url``. Names are relative to it. May be pickled."""

    url: str
    """No slash at its end."""
    patience: float | None = None
    """Seconds for which a request is tried again; None for PATIENCE_VARIABLE's."""

    def within(self, name: str) -> Self:
        """The part of the store under ``name``."""
        return type(self)(f"{self.url}/{name}", self.patience)

    def with_patience(self, seconds: float) -> Self:
        """The same, which gives up after ``seconds``."""
        return type(self)(self.url, seconds)

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is no such object."""
        # Otherwise s3fs asks for its size first, to fetch its parts side by side: twice the requests.
        options = {"max_concurrency": 1} if self.url.startswith("s3://") else {}

        def read() -> bytes | None:
            try:
                return bytes(self._files.cat_file(self._path(name), **options))
            except FileNotFoundError:
                return None

        return self._tried(read, name)

    def read_part(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` of an object. Raises FileNotFoundError where there is no such object."""

        def read() -> bytes | None:
            try:
                found = bytes(self._files.cat_file(self._path(name), start=start, end=end))
            except FileNotFoundError:
                return None
            if len(found) != end - start:
                raise OSError(f"{len(found)} of {end - start} bytes came")
            return found

        part = self._tried(read, name)
        if part is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", f"{self.url}/{name}".rstrip("/"))
        return part

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return self.entry(name) is not None

    def write(self, name: str, data: bytes) -> None:
        """Write an object, over one that is there."""
        self._tried(lambda: self._write(name, data), name)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one: of several that try, one succeeds. Whether it was written.

        After a lost answer it may say False of what it has written.
        """

        def create() -> bool:
            try:
                self._create(name, data)
            except FileExistsError:
                return False
            return True

        return self._tried(create, name)

    def upload(self, path: Path, name: str) -> None:
        """Write the file ``path`` as an object. Raises FileNotFoundError where there is no such file."""
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        if self._is_local:
            self._tried(lambda: _copy(path, Path(self._path(name))), name)
        else:
            self._tried(lambda: self._files.put_file(str(path), self._path(name)), name)

    def download(self, name: str, path: Path, size: int) -> bool:
        """Replace the file ``path``, atomically, by an object. False where the object is gone.

        size: bytes that it had when it was listed; one that was replaced since may have others.
        """

        def download() -> bool:
            try:
                with atomic_write(path) as temporary:
                    self._files.get_file(self._path(name), str(temporary))
                    came = temporary.stat().st_size
                    if came != size and came != (now := int(self._files.info(self._path(name))["size"])):
                        raise OSError(f"{came} of {now} bytes came")
            except FileNotFoundError:
                return False
            return True

        return self._tried(download, name)

    def remove(self, *names: str) -> None:
        """Remove objects; those that are not there are no error."""
        for name in names:

            def remove(name: str = name) -> None:
                try:
                    self._files.rm_file(self._path(name))
                except FileNotFoundError:
                    return

            self._tried(remove, name)

    def entry(self, name: str) -> Entry | None:
        """One object; None where there is no such object."""
        found = self.stat(name)
        return found if isinstance(found, Entry) else None

    def stat(self, name: str = "") -> Entry | Literal["directory"] | None:
        """What lies under ``name``: an object, or others below it, which are not listed for that; None for neither."""

        def stat() -> Entry | Literal["directory"] | None:
            try:
                info = self._files.info(self._path(name))
            except FileNotFoundError:
                return None
            return Entry(_version(info), int(info["size"])) if info["type"] == "file" else "directory"

        return self._tried(stat, name)

    def entries(self, name: str = "", *, must_exist: bool = False) -> dict[str, Entry]:
        """All objects under ``name``, by their names relative to this store.

        must_exist: the bucket; then StorageError is raised where there is none.
        """

        def entries() -> dict[str, Entry]:
            top = self._path("")
            try:
                found = self._files.find(self._path(name), detail=True)
                if must_exist and not found and self.url.startswith(("az://", "abfs://")):
                    # Azure's tells nothing of a container that is not there; the others do, and may refuse to be asked.
                    self._files.info(top.partition("/")[0])
            except FileNotFoundError:
                if must_exist:
                    raise
                return {}
            return {
                path.removeprefix(top).lstrip("/"): Entry(_version(info), int(info["size"]))
                for path, info in found.items()
                # Consoles make an empty object for a directory.
                if info["type"] == "file" and not path.endswith("/") and path.startswith(f"{top}/")
            }

        return self._tried(entries, name)

    # -------------------------------------------------------------------------------------------- one try each

    @property
    def _files(self) -> Any:
        return filesystem(self.url.partition("://")[0])

    @property
    def _is_local(self) -> bool:
        return self.url.startswith("file://")

    def _path(self, name: str) -> str:
        path = str(self._files._strip_protocol(self.url)).rstrip("/")
        return f"{path}/{name}" if name else path

    def _write(self, name: str, data: bytes) -> None:
        if self._is_local:
            with atomic_write(Path(self._path(name))) as temporary:
                temporary.write_bytes(data)
        else:
            self._files.pipe_file(self._path(name), data)

    def _create(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if not self._is_local:
            # S3: If-None-Match; Google: if-generation-match; Azure: If-None-Match.
            self._files.pipe_file(path, data, mode="create")
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=Path(path).parent, prefix=".") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), plain_mode())
            # Fails where there is one, and is there with all its content: O_EXCL would show an empty file first.
            os.link(file.name, path)

    def _tried(self, request: Callable[[], T], name: str) -> T:
        """Raises StorageError for what does not answer in time, or refuses."""
        patience = seconds_of_patience() if self.patience is None else self.patience
        where, begun, pause = f"{self.url}/{name}".rstrip("/"), time.monotonic(), 0.2
        while True:
            try:
                return request()
            except StorageError:
                raise
            except DiskFullError as error:
                # A disk of this machine: waiting frees no space.
                raise StorageError(str(error)) from None
            except Exception as error:
                said = " ".join(str(error).split())[:200] or type(error).__name__
                if not _may_pass(error):
                    raise StorageError(f"{where}: {said}") from None
                left = patience - (time.monotonic() - begun)
                if left <= 0:
                    raise StorageError(f"{where}: no answer for {patience:.0f} s ({said})") from None
                if pause < 0.3:
                    _log.warning("%s: %s: trying again for %.0f s", where, said, patience)
                time.sleep(min(pause * random.uniform(0.5, 1.0), left))
                pause = min(2 * pause, LONGEST_PAUSE)


_filesystems: dict[tuple[int, str, str | None], Any] = {}
"""By process, whose connections do not live on in a forked one, scheme, and endpoint where one is set."""

EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}

SCHEMES = (*EXTRAS, "file")
"""Of the URLs of stores."""


def filesystem(scheme: str) -> Any:
    """fsspec's file system for a URL's scheme. Raises StorageError, one line, where its package is missing."""
    # Not at the top: it takes a tenth of a second, which commands on local directories need not.
    import fsspec

    key = os.getpid(), scheme, os.environ.get("AWS_ENDPOINT_URL")
    if key not in _filesystems:
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if scheme == "s3":
            # Its own tries would multiply with ours.
            timeouts = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT}
            retries = {"total_max_attempts": 1}
            options["config_kwargs"] = {"retries": retries, "max_pool_connections": CONNECTIONS, **timeouts}
        try:
            made = fsspec.filesystem(scheme, **options)
        except ImportError:
            package = EXTRAS.get(scheme, f"the package that fsspec needs for {scheme}://")
            raise StorageError(f"{scheme}://: needs {package}: pip install -e '.[storage]'") from None
        except ValueError:
            raise StorageError(
                f"{scheme}://: no file system of fsspec's: s3://, gs://, az:// and file:// are"
            ) from None
        if scheme == "s3":
            made.retries = 1
        _filesystems[key] = made
    return _filesystems[key]


def seconds_of_patience() -> float:
    """What PATIENCE_VARIABLE says. Raises InputError, one line, where it is no number."""
    return environment.number(PATIENCE_VARIABLE, PATIENCE, "seconds")


def _may_pass(error: BaseException) -> bool:
    """Whether another try may help: for a server that is busy or not reached, not for what it refuses."""
    if isinstance(error, PERMANENT) or (isinstance(error, OSError) and error.errno in REFUSED):
        return False
    if isinstance(error, OSError):
        # gcsfs's word for 403.
        return not str(error).startswith("Forbidden")
    names = [x.__name__ for x in type(error).__mro__]
    for name, attribute in STATUS.items():
        if name in names:
            status = getattr(error, attribute, None)
            return status is None or int(status) >= 500 or int(status) in (408, 429)
    if any(UNREACHABLE.fullmatch(name) for name in names):
        return True
    # adlfs wraps some of them.
    return error.__cause__ is not None and _may_pass(error.__cause__)


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "generation"):
        if info.get(key):
            return str(info[key]).strip('"')
    made = info.get("mtime", info.get("created", ""))
    return f"{made.timestamp() if isinstance(made, datetime) else made}-{info.get('ino', '')}-{info['size']}"


def _copy(path: Path, to: Path) -> None:
    with atomic_write(to) as temporary:
        shutil.copyfile(path, temporary)
