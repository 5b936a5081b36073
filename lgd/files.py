"""Files: written atomically, so that a crash leaves the old content or the new; read without waiting."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Self

from lgd.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


MARK = ".lgd-tmp-"
"""In the name of every temporary file of ours, and of no other file."""

TEMPORARY = re.compile(rf"\..+{re.escape(MARK)}[a-z0-9_]{{8}}(\.[^.]*)?|\.step-\d+-[a-z0-9_]{{8}}\.pth", re.DOTALL)
"""Names of the files that :func:`temporary_file` makes, and of checkpoints half written by an earlier version."""

LONGEST_STEM = 40
"""Characters of a file's name in a temporary one, which must not grow too long for the file system."""


class DiskFullError(OSError):
    """A file could not be written for lack of space. The message names it, and says how much is free."""

    @classmethod
    def of(cls, error: OSError, path: Path) -> Self | None:
        """``error``, which writing ``path`` raised, as this one; None where it has another cause."""
        if error.errno not in NO_SPACE:
            return None
        free = f"{free_space(path.parent) / 2**20:,.1f} MiB free"
        return cls(error.errno, f"{os.strerror(error.errno)} ({free})", error.filename or str(path))

    def with_note(self, note: str) -> Self:
        """The same with a note after the message, on what is safe."""
        return type(self)(self.errno, f"{self.strerror}; {note}", self.filename)

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


def free_space(path: Path) -> int:
    """Bytes that can still be written in the directory ``path``, or where it would be.

    Raises InputError where it, or what it would lie in, is a file.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{place if place != path.absolute() else path}: a file, not a directory to write to")
    return shutil.disk_usage(place).free


def read_file(path: Path | str) -> bytes:
    """The content of a file, as :func:`open_file` opens it."""
    with open_file(path) as file:
        return file.read()


def open_file(path: Path | str) -> BufferedReader:
    """Open a file that somebody else may have made. Raises OSError for what is no regular file.

    A pipe would be waited for, and a device such as /dev/zero never ends.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends without an error, it replaces ``path``.

    The temporary name keeps the suffix, from which writers (matplotlib, torch) know the format. Raises DiskFullError
    where there is no space.
    """
    temporary = None
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # Replacing it would leave a file where a device such as /dev/null was.
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_file(path)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp's files can be read by their owner only; set the permissions of a plain open().
        temporary.chmod(plain_mode())
        temporary.replace(path)
    except OSError as error:
        full = None if isinstance(error, DiskFullError) else DiskFullError.of(error, path)
        if full is None:
            raise
        full.filename = str(path)
        raise full from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def temporary_file(path: Path) -> Path:
    """Make an empty file beside ``path``, with its suffix and a name that no file of the user's has.

    One that is left by a killed process :func:`remove_temporary_files` removes. Its directory must be there.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:LONGEST_STEM]}{MARK}", suffix=path.suffix)
    os.close(handle)
    return Path(name)


def plain_mode() -> int:
    """The permissions of a file that a plain ``open()`` makes."""
    # Not by setting it, which would be every thread's for a moment.
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return 0o666 & ~int(line.split()[1], 8)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def remove_temporary_files(directory: Path) -> None:
    """Remove the files of :func:`temporary_file` in ``directory``, which processes left that were killed.

    No other process may be writing there.
    """
    for path in directory.glob(".*-*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text``, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def walk(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """Every directory from ``directory`` on, with the names of its files, sorted; none where one cannot be read.

    Links are followed, after all else: each real directory comes once, by its own name if it has one here.
    """
    seen: set[str] = set()
    waiting, links = [str(directory)], list[str]()
    while waiting or links:
        folder = (waiting or links).pop(0)
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        files = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda x: x.name):
                if not entry.is_dir():
                    files.append(entry.name)
                else:
                    (links if entry.is_symlink() else waiting).append(entry.path)
        yield folder, files
