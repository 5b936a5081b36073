"""Numbers that environment variables give."""

from __future__ import annotations

import math
import os

from lgd.errors import InputError


def number(variable: str, default: float, unit: str) -> float:
    """What the variable says, from 0; ``default`` where it is not set. Raises InputError, one line, for no number."""
    text = os.environ.get(variable, "")
    try:
        found = float(text or default)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise InputError(f"{variable}={text}: a number of {unit} from 0")
    return found
