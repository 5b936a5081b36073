"""Records that cannot be read: they are named and left out, and everything else goes on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lgd.errors import InputError
from lgd.results.record import FILE, load

SET_ASIDE = "record.damaged.json"
"""File name of a damaged record once its trial is to be trained again."""


def damage(directory: Path) -> str:
    """Why a trial's record cannot be read, a line that names the file; "" where it can be read, or is not there."""
    path = directory / FILE
    if path.exists():
        try:
            load(path)
        except InputError as error:
            return str(error)
    return ""


def set_aside(directories: Iterable[Path]) -> None:
    """Rename the damaged records in ``directories``, so that their trials are trained again."""
    for directory in directories:
        if damage(directory):
            (directory / FILE).rename(directory / SET_ASIDE)
