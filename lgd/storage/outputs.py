"""Results directories that are URLs: each has a working directory on this machine, in the cache.

Commands and trainings work in that directory, as in any other. Which URL it stands for is in a file in it, so that any
process that is handed a path of it finds the store; for all other paths the functions here do nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lgd.cache import cache_root
from lgd.errors import InputError
from lgd.files import write_text
from lgd.storage.lease import Lease, LeaseLostError, check_newest
from lgd.storage.mirror import CHECKPOINTS, NEWEST, Mirror
from lgd.storage.store import SCHEMES, Store

URL_FILE = ".url"
"""In a working directory: the URL that it stands for."""

FOLDER = "outputs"
"""Of the cache: the working directories."""

RECORD = re.compile(r"((trials|teachers)/)?[^/]+/(record\.json|error\.txt|meter\.json|detections.*\.json\.gz)")
"""Names of the files of trainings that commands read which do not train."""

STOP_FILE = "stop"
"""In a sweep's results directory: trials that see it write a checkpoint and end, and none begins."""

LEASE_CHECK_S = 5.0
"""Seconds between two looks whether another process has taken over the lease under which a worker was started."""

_scheme = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.DOTALL)


def is_url(text: str) -> bool:
    """Whether an option's text names an object store rather than a directory."""
    return _scheme.fullmatch(text) is not None


def output_path(text: str) -> Path:
    """An option's directory: a path as it is; for a URL, its working directory on this machine."""
    return working_directory(text) if is_url(text) else Path(text)


def input_path(text: str) -> Path:
    """A directory to read: a path as it is; for a URL, a directory of what was read of it.

    It is not the one that a training on this machine may be at work in.
    """
    return working_directory(text, "read") if is_url(text) else Path(text)


def working_directory(url: str, purpose: str = "work") -> Path:
    """This machine's directory for ``url``. Raises InputError where that names no place in a store."""
    url = checked_url(url)
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    directory = cache_root().resolve() / FOLDER / f"{key}-{purpose}" / url.rpartition("/")[2]
    if not (directory / URL_FILE).exists():
        write_text(directory / URL_FILE, url)
    return directory


def checked_url(url: str) -> str:
    """A place in a store, without a slash at its end. Raises InputError where ``url`` names none, or has a secret."""
    found = _scheme.fullmatch(url.rstrip("/"))
    if not found or not found[2].strip("/"):
        raise InputError(f"{url}: a bucket and a name in it, such as s3://bucket/results")
    if found[1] not in SCHEMES:
        raise InputError(f"{found[1]}://...: no object storage that is known; these are {', '.join(SCHEMES)}")
    if any(x in url for x in "?#") or "@" in found[2].partition("/")[0]:
        # Of the URL its scheme alone: messages go to logs, where nobody looks for a secret.
        raise InputError(f"{found[1]}://...: without options and credentials, which belong into the environment")
    return url.rstrip("/")


def store_of(path: Path) -> Store | None:
    """The part of a store that ``path`` stands for; None for a path of this machine alone."""
    found = _root_of(path)
    if found is None:
        return None
    root, url = found
    name = path.absolute().relative_to(root).as_posix()
    return Store(url if name == "." else f"{url}/{name}")


def shown(path: Path) -> str:
    """``path`` as the user knows it: the URL of one in a working directory."""
    store = store_of(path)
    return str(path) if store is None else store.url


def output_option(text: str) -> Path:
    """:func:`output_path`, as argparse takes a type."""
    return _option(output_path, text)


def input_option(text: str) -> Path:
    """:func:`input_path`, as argparse takes a type."""
    return _option(input_path, text)


def _option(path: Callable[[str], Path], text: str) -> Path:
    if not text:
        # Most often a shell's variable that is not set; as a path it would be the working directory.
        raise argparse.ArgumentTypeError("an empty name")
    try:
        return path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def of_training(name: str) -> bool:
    """Choose what a training writes."""
    return name != STOP_FILE


def mirror_of(directory: Path, chosen: Callable[[str], bool] = of_training) -> Mirror | None:
    """``directory`` and what it stands for; None for a directory of this machine alone."""
    store = store_of(directory)
    return None if store is None else Mirror(directory, store, chosen)


def fetch_records(directory: Path, *, must_exist: bool = False) -> None:
    """Bring the records of trainings, and what a sweep has written besides, up to date; the copy of a URL only.

    Raises StorageError; InputError where nothing is there that ``must_exist``.
    """
    mirror = mirror_of(directory, lambda name: bool(RECORD.fullmatch(name)) or (_is_own(name) and name[-4:] != ".pth"))
    if mirror is None:
        return
    if must_exist and not mirror.store.entries():
        raise InputError(f"{mirror.store.url}: nothing is there")
    mirror.fetch()


def publish_records(directory: Path) -> None:
    """Publish the records in ``directory`` that could not be before."""
    mirror = mirror_of(directory, lambda name: bool(RECORD.fullmatch(name)))
    if mirror is not None:
        mirror.publish(remove=False)


def fetch_notes(directory: Path) -> None:
    """Bring what a training has noted besides checkpoints and weights up to date."""
    mirror = mirror_of(directory, lambda name: of_training(name) and _is_own(name) and name[-4:] != ".pth")
    if mirror is not None:
        mirror.fetch(without_version=NEWEST)


def read_path(text: str) -> Path:
    """:func:`input_path`, with :func:`fetch_records`."""
    path = input_path(text)
    fetch_records(path)
    return path


def beside(directory: Path) -> Path:
    """``directory``, with the records of the trainings beside it there to be read."""
    store = store_of(directory)
    if store is None:
        return directory
    parent, _, name = store.url.rpartition("/")
    return read_path(parent) / name


def publish_files(*paths: Path) -> None:
    """Publish these files, each in its directory."""
    for path in paths:
        mirror = mirror_of(path.parent)
        if mirror is not None:
            mirror.publish_files(path.name)


def publish_where_missing(directory: Path, name: str) -> None:
    """Publish all of a training's directory where the file ``name`` is in it and not in the store."""
    mirror = mirror_of(directory)
    if mirror is not None and (directory / name).exists() and not mirror.store.exists(name):
        mirror.publish()


def publish_own(directory: Path) -> None:
    """Publish what a sweep, or a report, has written besides its trainings."""
    mirror = mirror_of(directory, _is_own)
    if mirror is not None:
        mirror.publish(remove=False)


def remove(*paths: Path) -> None:
    """Remove these files here and in the store; those that are not there are no error."""
    for path in paths:
        mirror = mirror_of(path.parent)
        if mirror is None:
            path.unlink(missing_ok=True)
        else:
            mirror.remove(path.name)


def remove_tree(directory: Path) -> None:
    """Remove everything in ``directory``, here and in the store."""
    shutil.rmtree(directory, ignore_errors=True)
    store = store_of(directory)
    if store is not None:
        store.remove(*store.entries())


def names_in(directory: Path) -> list[str]:
    """Names of all files in ``directory``, relative to it: in the store where it stands for a part of one; sorted."""
    store = store_of(directory)
    if store is None:
        return sorted(x.relative_to(directory).as_posix() for x in directory.rglob("*") if x.is_file())
    return sorted(store.entries())


@contextlib.contextmanager
def held(
    directory: Path,
    *,
    on_wait: Callable[[str], None] = lambda _: None,
    on_lost: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Lease | None]:
    """Inside, no process on any machine but this one is at work on what ``directory`` stands for.

    Raises LeaseHeldError where another one is. None, and no more than that, for a directory of this machine alone.
    on_wait, should_stop: as :meth:`Lease.acquire` takes them.
    """
    store = store_of(directory)
    if store is None:
        yield None
        return
    with Lease(store, on_lost=on_lost).acquire(on_wait=on_wait, should_stop=should_stop) as lease:
        _leases[store.url] = lease.number
        try:
            yield lease
        finally:
            del _leases[store.url]


_leases: dict[str, int] = {}
"""Numbers of the leases that this process holds, by URL."""


def lease_number(directory: Path) -> int:
    """Number of the lease that this process holds on what ``directory`` stands for; 0 where it holds none."""
    store = store_of(directory)
    return 0 if store is None else _leases.get(store.url, 0)


@contextlib.contextmanager
def working_in(directory: Path, *, every: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, a training runs in ``directory``: fetched before, published meanwhile and at the end.

    Does nothing for a directory of this machine alone.
    """
    fetch_training(directory)
    with published(directory, every=every):
        yield


def fetch_training(directory: Path, *, checkpoints: bool = True) -> None:
    """Bring a training's directory up to date. checkpoints: those, too."""
    mirror = mirror_of(directory, of_training if checkpoints else _without_checkpoints)
    if mirror is not None:
        if checkpoints:
            # This machine's may be ahead of what it has published, unless the training has gone on elsewhere since.
            mirror.remove_unpublished(f"{CHECKPOINTS}/", unless_known=NEWEST)
        mirror.fetch(without_version="" if checkpoints else NEWEST)


@contextlib.contextmanager
def published(directory: Path, *, every: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, a training runs in ``directory``, which is published meanwhile and at the end."""
    mirror = mirror_of(directory)
    with contextlib.nullcontext() if mirror is None else mirror.published(every=every):
        yield


@contextlib.contextmanager
def publishing_own(directory: Path, *, every: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, what a sweep writes besides its trainings is published now and then, and at the end.

    every: called before; nothing is published where it raises StorageError.
    """
    mirror = mirror_of(directory, _is_own)
    with contextlib.nullcontext() if mirror is None else mirror.published(every=every):
        yield


class Signal:
    """A file that asks for something as soon as it is there. place: its path or URL; "" for none.

    lease: number of the lease on the URL's parent under which this process works, 0 for none; that another process
    has taken that over asks for the same.
    """

    def __init__(self, place: str, lease: int = 0) -> None:
        parent, _, self._name = place.rpartition("/")
        self._path = Path(place) if place and not is_url(place) else None
        self._store = Store(parent) if is_url(place) else None
        self._seen = False
        self._lease, self._lost, self._checked = lease, False, -LEASE_CHECK_S

    def refresh(self) -> None:
        """Ask the store, where it is a URL: to be called now and then. Raises StorageError.

        Raises LeaseLostError where another process has taken over the lease, which is asked for every LEASE_CHECK_S.
        """
        if self._store is None:
            return
        if self._lease and (self._lost or time.monotonic() - self._checked >= LEASE_CHECK_S):
            self._checked = time.monotonic()
            try:
                check_newest(self._store, self._lease)
            except LeaseLostError:
                self._seen = self._lost = True
                raise
        self._seen = self._seen or self._store.exists(self._name)

    def is_there(self) -> bool:
        return self._seen or (self._path is not None and self._path.exists())


def _without_checkpoints(name: str) -> bool:
    return of_training(name) and not name.startswith(f"{CHECKPOINTS}/")


def _is_own(name: str) -> bool:
    return "/" not in name


def _root_of(path: Path) -> tuple[Path, str] | None:
    """The working directory that ``path`` lies in, and its URL."""
    path, top = path.absolute(), cache_root().resolve() / FOLDER
    if not path.is_relative_to(top):
        return None
    parts = path.relative_to(top).parts
    root = top.joinpath(*parts[:2])
    try:
        return (root, (root / URL_FILE).read_text(encoding="utf-8")) if len(parts) > 1 else None
    except OSError:
        return None
