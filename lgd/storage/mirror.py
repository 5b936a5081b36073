"""A local directory, and the part of a store that it stands for.

Work is done in the local directory, as without a store. What was finished there is published: each file as one object,
a training's record as the last, so that whoever finds a record finds all that belongs to it. A file that is there
beside the others says which version of each object the local file is (size and modification time of the file, version
of the object): what has not changed is neither fetched nor published again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from lgd.background import called_every
from lgd.errors import InputError
from lgd.files import write_text
from lgd.storage.store import Entry, StorageError, Store

VERSIONS_FILE = ".published.json"
LOCK_FILE = ".published.lock"

CHECKPOINTS = "checkpoints"
LAST = ("record.json", "sweep.json")
"""Names of files that are published after all others."""

INTERVAL = 2.0
"""Seconds between two looks at what has changed."""

LOCAL_ONLY = ("ray", "tune")
"""Directories that Ray writes for itself."""

LOCAL_FILES = ("lock", "study.journal.lock")

NEWEST = "meter.json"
"""Of a training: it changes with every checkpoint and between them, so its version tells whether the training has gone
on elsewhere since this machine's checkpoints were published or fetched. A hash of its content is noted before it is
published: the answer may be lost."""

MOST_ATTEMPTS = 2000
"""How many of these hashes are kept: those of the newest contents whose answer was lost, of an outage of an hour."""

_log = logging.getLogger(__name__)


def everything(_: str) -> bool:
    """Choose every name."""
    return True


class _State(NamedTuple):
    """Of a local file when it was equal to an object: the object's version, the file's size and modification time."""

    version: str
    size: int
    modified: int
    attempted: Sequence[str] = ()
    """Hashes of contents that were to be written since, of which it is not known whether they were."""


class _Known(dict[str, _State]):
    """The states of the local files by name, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # A damaged file is as none: everything is compared anew.
        with contextlib.suppress(OSError, ValueError, TypeError):
            super().__init__({name: _State(*x) for name, x in json.loads(path.read_text(encoding="utf-8")).items()})
        self._saved = dict(self)

    def save(self) -> None:
        if self != self._saved:
            write_text(self._path, json.dumps(self))
            self._saved = dict(self)


@dataclass(frozen=True)
class Mirror:
    """``directory`` stands for what lies in ``store``."""

    directory: Path
    store: Store
    chosen: Callable[[str], bool] = field(default=everything)
    """Which names of both, relative to them, it is about."""

    def fetch(self, *, without_version: str = "") -> None:
        """Bring the local directory up to date.

        without_version: name of a file whose version is not noted. For one by which :meth:`remove_unpublished` judges,
        where what it judges is not fetched with it.

        Local changes stay, to be published, unless the object has changed too: what was published counts. A file that
        has not changed here and is gone in the store goes. Raises StorageError.
        """
        with self._versions() as known:
            there = {name: x for name, x in self.store.entries().items() if self._is_chosen(name)}
            for name, entry in sorted(there.items(), key=lambda x: _order(x[0])):
                state, path = self._compared(name, entry, known), self.directory / name
                if path.exists() and state is not None and state.version == entry.version:
                    continue
                if self.store.download(name, path, entry.size):
                    known[name] = _state(path, "" if name == without_version else entry.version)
            for name in known.keys() - there.keys():
                path = self.directory / name
                if (
                    self._is_chosen(name)
                    and path.exists()
                    and not known[name].attempted
                    and not _changed(path, known[name])
                ):
                    path.unlink(missing_ok=True)
                    del known[name]

    def publish(self, *, store: Store | None = None, remove: bool = True) -> None:
        """Write what has changed here into the store, checkpoints after logs, records last; remove what is gone here.

        store: the same one with another patience. Raises StorageError; what was not published yet stays for the next
        call.
        """
        store = store or self.store
        with self._versions() as known:
            here = sorted(filter(self._is_chosen, _files(self.directory)), key=_order)
            for name in here:
                self._publish(name, known, store)
            gone = [name for name in known if self._is_chosen(name) and name not in here] if remove else []
            for name in gone:
                if not (self.directory / name).exists():
                    store.remove(name)
                    del known[name]

    def publish_files(self, *names: str) -> None:
        """Publish these files only, whatever else there is."""
        with self._versions() as known:
            for name in sorted(names, key=_order):
                self._publish(name, known, self.store)

    def remove_unpublished(self, prefix: str, *, unless_known: str) -> None:
        """Remove local files under ``prefix`` that were never published, where others have worked in the store since.

        That is so where the object ``unless_known`` is not the one that was last published, or fetched, here.
        """
        with self._versions() as known:
            entry = self.store.entry(unless_known)
            if entry is None:
                return
            state = self._compared(unless_known, entry, known)
            if state is not None and state.version == entry.version:
                return
            for name in list(_files(self.directory)):
                if name.startswith(prefix) and name not in known:
                    (self.directory / name).unlink(missing_ok=True)

    def remove(self, *names: str) -> None:
        """Remove these files and their objects."""
        with self._versions() as known:
            for name in names:
                (self.directory / name).unlink(missing_ok=True)
                known.pop(name, None)
            self.store.remove(*names)

    @contextlib.contextmanager
    def published(self, *, every: Callable[[], None] = lambda: None, interval: float | None = None) -> Iterator[None]:
        """Publish, in a thread, what changes while the block runs, and the rest at its end, whatever ends it.

        every: called before it, again and again; nothing is published where it raises StorageError. The store may be
        away for a while: what it lacks is published as soon as it answers. Raises StorageError where it does not at the
        end.
        """
        interval = INTERVAL if interval is None else interval
        patient = self.store.with_patience(interval)
        failed = False

        def publish() -> None:
            nonlocal failed
            try:
                every()
                self.publish(store=patient)
                failed = False
            except (InputError, OSError) as error:
                if not failed:
                    _log.warning("not published yet: %s", error)
                failed = True

        try:
            with called_every(interval, publish, f"publish {self.directory.name}"):
                yield
        finally:
            try:
                every()
                self.publish()
            except StorageError as error:
                raise StorageError(f"{error}; what was not published is in {self.directory}") from None

    # ------------------------------------------------------------------------------------------------------

    def _is_chosen(self, name: str) -> bool:
        parts = name.split("/")
        hidden = any(x.startswith(".") for x in parts) or parts[0] in ("lease", *LOCAL_ONLY) or parts[-1] in LOCAL_FILES
        return not hidden and self.chosen(name)

    def _compared(self, name: str, entry: Entry, known: _Known) -> _State | None:
        """The file's state; with this version of the object where the object was written from here, though the process
        was killed, or the store away, before that was known."""
        state = known.get(name)
        if state is not None and state.attempted and state.version != entry.version:
            there = self.store.read(name)
            if there is not None and _hash(there) in state.attempted:
                # The file may have changed since: it is published again.
                state = known[name] = _State(entry.version, -1, 0)
        return state

    def _publish(self, name: str, known: _Known, store: Store) -> None:
        path = self.directory / name
        try:
            before = known.get(name)
            if before is not None and not before.attempted and not _changed(path, before):
                return
            # Before it is read: what is written meanwhile makes it changed again.
            state = _state(path, "")
            if name == NEWEST:
                content, last = path.read_bytes(), before or state
                attempted = dict.fromkeys((*last.attempted, _hash(content)))
                known[name] = last._replace(attempted=tuple(attempted)[-MOST_ATTEMPTS:])
                known.save()
                store.write(name, content)
            else:
                store.upload(path, name)
        except FileNotFoundError:
            # It was removed, as old checkpoints are, or never written.
            return
        entry = store.entry(name)
        known[name] = state._replace(version=entry.version if entry else "")

    @contextlib.contextmanager
    def _versions(self) -> Iterator[_Known]:
        """The versions of the local files, for the block to change; no other process may meanwhile."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / VERSIONS_FILE
        with FileLock(self.directory / LOCK_FILE):
            known = _Known(path)
            try:
                yield known
            finally:
                known.save()


def _files(directory: Path) -> Iterable[str]:
    for path in directory.rglob("*"):
        if path.is_file():
            yield path.relative_to(directory).as_posix()


def _order(name: str) -> tuple[bool, bool, str]:
    # A checkpoint after the logs of the steps up to it: whoever goes on from it elsewhere has those, too.
    *folders, file = name.split("/")
    return file in LAST, CHECKPOINTS in folders, name


def _state(path: Path, version: str) -> _State:
    status = path.stat()
    return _State(version, status.st_size, status.st_mtime_ns)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _changed(path: Path, state: _State) -> bool:
    now = _state(path, "")
    return (now.size, now.modified) != (state.size, state.modified)
