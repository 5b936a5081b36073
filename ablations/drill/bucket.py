"""Where a drill's sweeps lie when that is object storage: the user's own, or a server that the drill starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from ablations.drill.checks import Failure
from ablations.drill.s3_server import Faults, s3_server, variables
from lgd.errors import InputError
from lgd.storage.lease import FOLDER
from lgd.storage.mirror import INTERVAL, Mirror
from lgd.storage.outputs import checked_url
from lgd.storage.store import Store, filesystem

OWN = "s3://drill/sweeps"
"""In the server that the drill starts."""

UNPUBLISHED_S = INTERVAL + 1.0
"""Seconds of work that is on the disk of a process alone, and lost with it: it publishes every INTERVAL."""


@dataclass(frozen=True)
class Bucket:
    """A place in object storage."""

    url: str
    faults: Faults | None = None
    """Of the server that the drill started; None for the user's own."""

    @property
    def store(self) -> Store:
        return Store(self.url)

    def within(self, name: str) -> Self:
        return replace(self, url=f"{self.url}/{name}")

    def moved(self) -> Self:
        """Move everything there to another name."""
        elsewhere = replace(self, url=f"{self.url}-elsewhere")
        for name in self.store.entries():
            elsewhere.store.write(name, self.store.read(name) or b"")
        self.clear()
        return elsewhere

    def clear(self) -> None:
        """Remove everything there."""
        self.store.remove(*self.store.entries())

    @contextmanager
    def copied(self, directory: Path) -> Iterator[Path]:
        """Inside, ``directory`` holds what is there, but for leases; what the block changes is changed there."""
        mirror = Mirror(directory, self.store)
        mirror.fetch()
        yield directory
        mirror.publish()

    def check_lease(self) -> list[Failure]:
        """Nobody is at work there any more."""
        names = sorted(self.store.entries(FOLDER))
        if not names:
            return [Failure("nothing left", f"{self.url}: no lease was ever held")]
        held = json.loads(self.store.read(names[-1]) or b"{}")
        return [] if held.get("released") else [Failure("nothing left", f"{self.url}/{names[-1]} is held")]


@contextmanager
def opened(url: str) -> Iterator[Bucket]:
    """The user's own bucket at ``url``; for "" one of a server, moto's, that runs in this process meanwhile.

    This process and those that it starts take that for S3. Raises InputError where moto is not installed.
    """
    if url:
        yield Bucket(checked_url(url))
        return
    for package in ("moto", "s3fs"):
        if find_spec(package) is None:
            raise InputError(f"--bucket without a URL: needs the package {package}: make setup-dev")
    with s3_server() as (address, faults):
        before = dict(os.environ)
        os.environ.update(variables(address))
        try:
            filesystem("s3").mkdir(OWN.partition("://")[2].partition("/")[0])
            yield Bucket(OWN, faults)
        finally:
            os.environ.clear()
            os.environ.update(before)
