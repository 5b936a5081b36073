"""Whether the classes that a detector returns are the data's: a detector of somebody's own may count otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lgd.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WrongClassError", "check_classes"]


class WrongClassError(InputError):
    """A detection is of a class that the data does not have."""


def check_classes(classes: Tensor, count: int) -> None:
    """Raise WrongClassError, one line, where one of ``pred_classes`` is not from 0 to ``count`` - 1.

    -1 would be scored as the last class.
    """
    if len(classes) == 0:
        return
    for found in (int(classes.min()), int(classes.max())):
        if not 0 <= found < count:
            raise WrongClassError(f"pred_classes count from 0 to {count - 1}, without the background: got {found}")
