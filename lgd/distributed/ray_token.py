"""The token by which the processes of a Ray cluster authenticate each other."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["own_token", "use_token"]

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

TOKEN_FILE = Path("~/.ray/auth_token")
"""Where ``ray get-auth-token --generate`` writes one."""

_token = secrets.token_hex(32)
"""Token of the clusters that this process starts. One for all: Ray keeps the first that it reads."""


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """Inside, Ray's processes authenticate each other by a token that nobody else has.

    Ray asks for a token by default where it starts a cluster (RAY_AUTH_MODE=disabled turns it off), but takes it from a
    file in the home directory that all users of the machine may be able to read. One that is set in the environment is
    left as it is.
    """
    if any(os.environ.get(name) for name in TOKEN_VARIABLES):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = _token
    with contextlib.suppress(ImportError, AttributeError):
        # A driver that talked to another cluster before has that one's token in its cache.
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        os.environ.pop("RAY_AUTH_TOKEN", None)


def use_token() -> None:
    """Have Ray's client of the Jobs API send a token where there is one, as ``ray.init()`` does without being told to.

    To be called before Ray is imported.
    """
    if any(os.environ.get(name) for name in TOKEN_VARIABLES) or TOKEN_FILE.expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
