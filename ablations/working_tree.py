"""The working tree as one archive, which Ray unpacks on every node of a job as its working directory."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lgd.errors import InputError

LEFT_OUT = (
    ".git", ".venv", ".gpu", "build", "dist", "datasets", "results", "runs", "outputs", "benchmarks/results",
)  # fmt: skip
"""Directories, relative to the working tree, that no job reads or that belong on storage."""

CACHES = ("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints")
"""Names of directories that are left out wherever they are."""

MAX_MIB = 200
"""Largest sum of file sizes that is sent: the head node keeps the archive in memory, and Ray refuses 512 MiB."""


def pack(directory: Path, target: Path) -> Path:
    """Write the files of a working tree into a zip archive named after its content; the archive's path.

    directory: what git ignores in it is left out as well, where it is a git repository. target: an existing directory.
    Raises InputError where there is no file, or more than MAX_MIB of them.
    """
    files = sorted(_files(directory))
    if not files:
        raise InputError(f"{directory}: no files to send")
    check_size({name: (directory / name).stat().st_size for name in files}, directory)
    archive = target / "working_tree.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for name in files:
            # Without its time, so that the same tree is the same archive, which Ray does not send again.
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = stat.S_IMODE((directory / name).stat().st_mode) << 16
            out.writestr(entry, (directory / name).read_bytes())
    return archive.rename(target / f"lgd-{hashlib.sha256(archive.read_bytes()).hexdigest()[:16]}.zip")


def sends(directory: Path, path: Path) -> bool:
    """Whether what lies at the relative ``path`` in a working tree is sent, or at least a file of it."""
    name = os.path.normpath(path)
    return any(name in (x, ".") or x.startswith(f"{name}/") for x in _files(directory))


def check_size(sizes: dict[str, int], directory: Path) -> None:
    """Raise InputError where files of these sizes in bytes are too much to send; it names the largest."""
    total = sum(sizes.values())
    if total > MAX_MIB * 2**20:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise InputError(
            f"{directory}: {total / 2**20:.0f} MiB to send, and {MAX_MIB} MiB is the limit; list in .gitignore what the"
            f" job does not need (largest: {', '.join(f'{x}, {sizes[x] / 2**20:.0f} MiB' for x in largest)})"
        )


def _files(directory: Path) -> Iterator[str]:
    """The files to send, relative to ``directory``."""
    for name in _listed(directory):
        parts = Path(name).parts
        left_out = any(name == x or name.startswith(f"{x}/") for x in LEFT_OUT)
        # Credentials are often kept in .env, .env.local, .envrc or production.env.
        left_out |= parts[-1].startswith(".env") or parts[-1].endswith(".env")
        # git lists files that are deleted since, too, and links to directories.
        if left_out or set(parts) & set(CACHES) or not (directory / name).is_file():
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            said = f"{directory}: the name of {name!r} is no UTF-8: rename it, or list it in .gitignore"
            raise InputError(said) from None
        yield name


def _listed(directory: Path) -> Iterator[str]:
    command = ["git", "-C", str(directory), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")[:-1]
    except (OSError, subprocess.CalledProcessError):
        pass  # not a repository, or no git here
    else:
        yield from map(os.fsdecode, listed)
        return
    for top, directories, names in os.walk(directory):
        here = Path(top).relative_to(directory)
        # Not even entered: an environment or data set has too many files.
        directories[:] = [x for x in directories if x not in CACHES and (here / x).as_posix() not in LEFT_OUT]
        yield from ((here / name).as_posix() for name in names)
