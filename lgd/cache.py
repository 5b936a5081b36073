"""Where generated and downloaded files are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Where generated files go: $LGD_CACHE, else $XDG_CACHE_HOME/lgd, else ~/.cache/lgd; absolute."""
    own = os.environ.get("LGD_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser().absolute() if base else Path.home() / ".cache") / "lgd"
