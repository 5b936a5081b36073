"""Records that cannot be read: they are named and left out, and everything else goes on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lgd.errors import InputError
from lgd.results.record import FILE, Record, load
from lgd.storage.outputs import publish_files, remove

SET_ASIDE = "record.damaged.json"
"""File name of a damaged record once its trial is to be trained again."""


def read(directory: Path) -> Record | str | None:
    """A trial's record; why it cannot be read, a line that names the file; None where there is none."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        return load(path)
    except InputError as error:
        return str(error)


def damage(directory: Path) -> str:
    """Why a trial's record cannot be read, a line that names the file; "" where it can be read, or is not there."""
    found = read(directory)
    return found if isinstance(found, str) else ""


def set_aside(directories: Iterable[Path]) -> None:
    """Rename the damaged records in ``directories``, so that their trials are trained again."""
    for directory in directories:
        if damage(directory):
            (directory / FILE).rename(directory / SET_ASIDE)
            publish_files(directory / SET_ASIDE)
            remove(directory / FILE)
